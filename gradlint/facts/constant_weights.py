"""Weights that the text gives one value: which layers, and which of them feed another such layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradlint.facts.models import Initialised, ModelFacts
from gradlint.probe.worker.layergraph import WEIGHT, LayerGraph, Node

CONSTANT = frozenset({"zeros", "constant"})


@dataclass(frozen=True)
class Constant:
    """A layer whose weights are all equal, and the call that makes them so."""

    path: str
    at: tuple[str, int]


def constants(model: ModelFacts) -> Iterator[Constant]:
    """Every layer with constant weights; a parameter made by hand only where the forward multiplies with it."""
    used = {n.path for n in model.graph.nodes if n.kind == WEIGHT}
    for layer in model.initialised:
        if layer.init in CONSTANT and (not layer.made_by_hand or layer.path in used):
            yield _constant(layer)


def constant_pairs(model: ModelFacts) -> Iterator[Constant]:
    """Those whose output goes, by one way only, to another layer with constant weights."""
    paths = {n.path for n in _feeding(model.graph)}
    return (c for c in constants(model) if c.path in paths)


def _constant(layer: Initialised) -> Constant:
    return Constant(layer.path, layer.at)


def _feeding(graph: LayerGraph) -> Iterator[Node]:
    users: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for i in node.inputs:
            users.setdefault(i, []).append(node)
    made = _made_by_weights(graph)
    for node in graph.nodes:
        if node.kind != WEIGHT or node.init not in CONSTANT or node.fan_out == 1:
            continue
        here = node
        while len(users.get(here.id, ())) == 1:
            here = users[here.id][0]
            if sum(i in made for i in here.inputs) != 1:
                break
            if here.kind == WEIGHT:
                if here.init in CONSTANT:
                    yield node
                break


def _made_by_weights(graph: LayerGraph) -> set[int]:
    """The nodes that some weight layer leads to: what else comes in is an input (an adjacency, a mask)."""
    made: set[int] = set()
    for node in graph.nodes:
        if node.kind == WEIGHT or any(i in made for i in node.inputs):
            made.add(node.id)
    return made
