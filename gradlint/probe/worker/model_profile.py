"""The gradient profile of a model: what reaches each of its weight layers, in the order of the forward."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Sequence, Tuple

import torch
from layergraph import WEIGHT, Chain, LayerGraph, Node
from model_meter import Bench, norm
from torch import Tensor

LAYERS = 2_000
"""Layers that are shown."""


def layers_of(graph: LayerGraph) -> List[Node]:
    """The weight layers of a traced model."""
    return [n for n in graph.nodes if n.kind == WEIGHT and n.call is not None][:LAYERS]


def single(layers: Sequence[Node]) -> List[Chain]:
    """Each layer as a chain of its own, so that a meter reads it."""
    return [Chain((layer,), (), ()) for layer in layers]


def profile(bench: Bench, layers: Sequence[Node], seeds: Sequence[int]) -> List[Dict[str, Any]]:
    """Each layer with its numbers, the median over ``seeds``: norm of the weight's gradient over sqrt(fan_in), norm of
    the gradient at its output, spread of its output over the batch."""
    runs = [_run(bench, seed) for seed in seeds]
    rows: List[Dict[str, Any]] = []
    for layer in layers:
        found = [run[layer.call] for run in runs if layer.call in run]
        weight, delta, spread = (_median([f[i] for f in found]) for i in range(3))
        rows.append(
            {
                "path": layer.path,
                "op": layer.op,
                "line": layer.line,
                "fan_in": layer.fan_in,
                "fan_out": layer.fan_out,
                "init": layer.init,
                "weight_gradient": weight / math.sqrt(layer.fan_in or 1),
                "output_gradient": delta,
                "output_spread": spread,
            }
        )
    return rows


def _run(bench: Bench, seed: int) -> Dict[Any, Tuple[float, float, float]]:
    model = bench.build(seed)
    args, kwargs = bench.inputs(seed, False)
    meter = bench.meter(seed, None)
    loss = bench.loss(model, args, kwargs, meter, seed)
    calls = sorted(meter.weights)
    found: Tuple[Any, ...] = torch.autograd.grad(loss, [meter.weights[c] for c in calls], allow_unused=True)
    return {c: (_norm(g), meter.deltas.get(c, 0.0), meter.spreads.get(c, math.nan)) for c, g in zip(calls, found)}


def _norm(gradient: Any) -> float:
    return norm(gradient) if isinstance(gradient, Tensor) else 0.0


def _median(values: Sequence[float]) -> float:
    good = sorted(v for v in values if not math.isnan(v))
    return good[len(good) // 2] if good else math.nan
