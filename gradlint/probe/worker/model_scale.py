"""Weights drawn too large: the layers of a whole model that are, taken together as if they were one chain."""

from __future__ import annotations

from typing import Any, List, Mapping

from layergraph import ACTIVATION, WEIGHT, Chain, LayerGraph

LARGE = 3.0
"""``fan_in`` times variance from which a layer counts as large: He initialisation has 2, a tanh gain of 5/3 2.8."""
MOST_SPREAD, MOST_SATURATED = 100.0, 0.9
"""The lines of an oversized initialisation (FAULTS part 0)."""


def oversized(graph: LayerGraph) -> List[Chain]:
    """The explicitly initialised layers whose weights are large, and the model's last layer; none: no chain."""
    weights = [n for n in graph.nodes if n.kind == WEIGHT and n.call is not None]
    large = [n for n in weights if n.init.startswith("normal:") and n.fan_in and _size(n.init, n.fan_in) > LARGE]
    if not large:
        return []
    last = weights[-1]
    layers = (*large, last) if large[-1].id != last.id else tuple(large)
    acts = tuple(n for n in graph.nodes if n.kind == ACTIVATION and n.id < last.id)
    links = ((acts,) + ((),) * (len(layers) - 2)) if len(layers) > 1 else ()
    return [Chain(layers, links, tuple(() for _ in links), acts if len(layers) == 1 else ())]


def _size(init: str, fan_in: int) -> float:
    return fan_in * float(init[7:]) ** 2


def is_large(numbers: Mapping[str, Any]) -> bool:
    """Whether a chain's output or activations are past the lines."""
    start = numbers["start"]
    return not start["finite"] or start["sigma_out"] > MOST_SPREAD or start["saturated"] > MOST_SATURATED
