"""The layer graph: what a model computes, as plain data, and the chains in it.

One serialisable type with two producers: the static reader of source text (approximate, may hold
``unknown`` nodes) and the tracer in the worker (exact for the run it saw). Used by both sides, so this
file needs the standard library only and keeps to Python 3.9 syntax.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

# Kinds of node. Only WEIGHT, ACTIVATION, NORM and TRANSPARENT can lie on a chain.
INPUT = "input"
WEIGHT = "weight"
ACTIVATION = "activation"
NORM = "norm"
TRANSPARENT = "transparent"  # dropout, pooling, reshape, padding, interpolation, scaling by a constant
JOIN = "join"  # sum, concatenation or product of two live paths
ATTENTION = "attention"
RECURRENT = "recurrent"
CONSTANT = "constant"  # carries no gradient: shapes, indices, detached values, fresh tensors
UNKNOWN = "unknown"
OUTPUT = "output"

SIGMOID_LIKE = frozenset({"sigmoid", "logsigmoid", "hardsigmoid"})
RELU_LIKE = frozenset({"relu", "leaky_relu", "relu6", "prelu", "rrelu", "threshold"})
GELU_LIKE = frozenset({"gelu", "silu", "mish", "softplus", "hardswish"})
TANH_LIKE = frozenset({"tanh", "elu", "selu", "celu", "hardtanh", "softsign", "tanhshrink"})
PERIODIC = frozenset({"sin", "cos"})
BATCH_NORMS = frozenset({"batch_norm", "sync_batch_norm"})
LAYER_NORMS = frozenset({"layer_norm", "rms_norm", "group_norm"})
OTHER_NORMS = frozenset({"instance_norm", "local_response_norm", "normalize"})


@dataclass(frozen=True)
class Node:
    """One operation. ``inputs`` are ids of earlier nodes that carry a gradient into it."""

    id: int
    kind: str
    op: str
    inputs: Tuple[int, ...] = ()
    path: str = ""
    """Dotted module path, or name of the parameter for a functional call; '' where there is none."""
    line: Optional[int] = None
    fan_in: Optional[int] = None
    fan_out: Optional[int] = None
    init: str = "default"
    """``default``, ``he``, ``xavier``, ``lecun``, ``orthogonal``, ``normal:<std>``, ``gain:<fan_in times variance>``,
    ``zeros``, ``constant``, ``loaded``, ``unknown``."""
    call: Optional[int] = None
    """Traced graphs: running number among the WEIGHT or ACTIVATION calls of a forward, from 0."""
    attrs: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerGraph:
    """Nodes in execution order. ``source`` says who made it: ``static``, ``symbolic`` or ``hooks``."""

    nodes: Tuple[Node, ...]
    source: str
    complete: bool = True
    """False where the producer met something it could not follow."""

    def to_json(self) -> Dict[str, Any]:
        """Plain data for the wire."""
        return {"source": self.source, "complete": self.complete, "nodes": [asdict(n) for n in self.nodes]}

    @staticmethod
    def from_json(data: Dict[str, Any]) -> "LayerGraph":
        """The inverse of :meth:`to_json`."""
        nodes = tuple(Node(**{**n, "inputs": tuple(n["inputs"])}) for n in data["nodes"])
        return LayerGraph(nodes, data["source"], data["complete"])


@dataclass(frozen=True)
class Chain:
    """A run of weight layers with an activation between them and no join (FAULTS part 0).

    ``links[i]`` lies between ``layers[i]`` and ``layers[i + 1]``. ``tail`` describes what follows the
    last layer when that is an activation: the last layer is then itself a hidden one.
    """

    layers: Tuple[Node, ...]
    activations: Tuple[Tuple[Node, ...], ...]
    norms: Tuple[Tuple[Node, ...], ...]
    tail: Tuple[Node, ...] = ()

    @property
    def depth(self) -> int:
        """L of the tables: weight layers, the output layer included."""
        return len(self.layers)

    @property
    def last_hidden(self) -> int:
        """Index of the last layer whose output goes through an activation."""
        return self.depth - 1 if self.tail else max(self.depth - 2, 0)


def chains(graph: LayerGraph) -> List[Chain]:
    """All maximal chains of ``graph``, in execution order.

    A chain ends at a join, at a node of a kind that no chain may hold, and where a value is used by more
    than one live consumer: a gradient that has another way round does not vanish along the chain. Two
    weight layers with no activation between them are not linked.
    """
    by_id = {n.id: n for n in graph.nodes}
    users: Dict[int, List[Node]] = {n.id: [] for n in graph.nodes}
    for n in graph.nodes:
        for i in n.inputs:
            if i in users:
                users[i].append(n)
    live = _live(graph, by_id)
    after: Dict[int, Tuple[Optional[Node], List[Node], List[Node]]] = {}
    for n in graph.nodes:
        if n.kind == WEIGHT:
            after[n.id] = _follow(n, users, live)
    targets = {step[0].id for step in after.values() if step[0] is not None and step[1]}
    found: List[Chain] = []
    for n in graph.nodes:
        if n.kind != WEIGHT or n.id in targets:
            continue
        layers, acts, norms = [n], [], []
        here = n
        while True:
            nxt, a, m = after[here.id]
            if nxt is None or not a:
                tail = tuple(a)
                break
            layers.append(nxt)
            acts.append(tuple(a))
            norms.append(tuple(m))
            here = nxt
        found.append(Chain(tuple(layers), tuple(acts), tuple(norms), tail))
    return found


def plain_stretch(chain: Chain) -> int:
    """Weight layers in the chain's longest run without a normalization between them."""
    best = run = 1
    for norms in chain.norms:
        run = 1 if norms else run + 1
        best = max(best, run)
    return best


def _follow(
    start: Node, users: Dict[int, List[Node]], live: FrozenSet[int]
) -> Tuple[Optional[Node], List[Node], List[Node]]:
    """The next weight layer on the only path from ``start``, and the activations and norms on the way."""
    acts: List[Node] = []
    norms: List[Node] = []
    here = start
    while True:
        ahead = [u for u in users[here.id] if u.id in live]
        if len(ahead) != 1:
            return None, acts, norms
        here = ahead[0]
        if len(here.inputs) != 1:
            return None, acts, norms
        if here.kind == WEIGHT:
            return here, acts, norms
        if here.kind == ACTIVATION:
            acts.append(here)
        elif here.kind == NORM:
            norms.append(here)
        elif here.kind != TRANSPARENT:
            return None, acts, norms


def _live(graph: LayerGraph, by_id: Dict[int, Node]) -> FrozenSet[int]:
    """Ids of nodes from which an output can be reached; all nodes where no output is known."""
    outputs = [n.id for n in graph.nodes if n.kind == OUTPUT]
    if not outputs:
        return frozenset(by_id)
    seen = set(outputs)
    todo = list(outputs)
    while todo:
        for i in by_id[todo.pop()].inputs:
            if i in by_id and i not in seen:
                seen.add(i)
                todo.append(i)
    return frozenset(seen)
