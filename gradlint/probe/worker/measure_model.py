"""Model experiments: build, run, read the layer graph, measure its chains as written and under each remedy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from trace import TooLarge, symbolic
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import build
import cpu_standins
import integrity
import torch
from layergraph import SIGMOID_LIKE, TRANSPARENT, Chain, LayerGraph, Node, chains
from model_inputs import Seen, observe, with_side
from model_meter import Bench, Remedy, cotangent_loss, measure
from model_missing import Missing
from model_profile import layers_of, profile, single
from model_scale import is_large, oversized
from model_symmetry import symmetry
from model_weights import default_std_ratio, init_of, is_default
from modules import SlicedModules
from probe_errors import ProbeError
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

SEEDS = 5
MARGIN = 2e-2
"""Chains that are healthy beyond this are not measured again under remedies: no line is near (1e-2 at most)."""
CHAIN_LIMIT = 8
"""Chains that are measured, the deepest first."""
SICK_LIMIT = 3
"""Chains that remedies are tried on."""
SMALL_SIDE = 12
"""Height and width of images where the model takes them so small."""
GRAPH_LIMIT = 4_000
"""Nodes above which those that no chain needs are left out of the answer."""

SYMBOLIC_WORK = 3e9
"""Multiply-adds of a forward above which it is not repeated for the symbolic trace."""

# The cost model: what one core of a usual machine does, in seconds. It is counted, never timed, so that the same
# request always gives the same numbers.
_PER_PARAMETER, _PER_MULTIPLY_ADD, _PER_VALUE, _PER_OPERATION = 1e-8, 6e-11, 4e-9, 6e-5
_RUN_SECONDS = 0.06
"""What one forward and backward may cost before the batch is made smaller."""
_TOTAL_SECONDS = 2.0
_RUNS = 3.5
"""Runs per seed: as written, and two or three remedies."""


def run(body: Mapping[str, Any]) -> Dict[str, Any]:
    """Carry out one model request.

    Raises:
        ProbeError: ``not-built``, ``not-traced`` or ``no-gradient``, with what would help.
    """
    missing = Missing()
    _warm_optimizers()
    with cpu_standins.on_a_cpu():
        snapshot = integrity.take()
        with SlicedModules(body["modules"], missing) as slices:
            missing.slices = slices
            recipe = build.find(body, slices, missing)
            answer = _Experiment(body, recipe).carry_out()
        snapshot.verify()
    return answer


@dataclass(frozen=True)
class _Trace:
    """What one forward of the model showed."""

    graph: LayerGraph
    source: str
    calls: Tuple[Tuple[str, str], ...]
    cost: float
    """Seconds per sample of a forward and backward, by the cost model."""
    fixed_cost: float
    second_order: bool
    weights: Mapping[int, Tensor]
    with_gradient: int
    unused: List[str]
    parameters: int


def _normalizes_weights(model: nn.Module, chain: Chain) -> bool:
    """Whether most layers of a chain have weight or spectral normalization: their scale is a parameter of its own."""
    modules = dict(model.named_modules())
    layers = [modules[n.path] for n in chain.layers if n.path in modules]
    bound = [m for m in layers if is_parametrized(m) or hasattr(m, "weight_g") or hasattr(m, "weight_orig")]
    return 2 * len(bound) > len(chain.layers)


class _Experiment:
    def __init__(self, body: Mapping[str, Any], recipe: build.Recipe) -> None:
        self.body = body
        self.recipe = recipe

    def carry_out(self) -> Dict[str, Any]:
        """The body of the answer."""
        batch = None if self.recipe.inputs.stated else self.recipe.inputs.batch
        seen, self.recipe.seen = self.recipe.seen, None
        if seen is None:
            raise ProbeError("not-built", "no forward was seen")
        trace, model = self._trace(seen, batch), seen.model
        del seen
        found = [(i, c) for i, c in enumerate(chains(trace.graph)) if c.depth >= int(self.body.get("min_depth", 4))]
        found = [(i, c) for i, c in found if not _normalizes_weights(model, c)]
        del model
        found = sorted(sorted(found, key=lambda pair: -pair[1].depth)[:CHAIN_LIMIT])
        if found and batch is not None:
            trace = self._on_small_images(trace, batch)
        if "scale" in self.body.get("measures", ()):
            found.extend((-1, chain) for chain in oversized(trace.graph))
        answer: Dict[str, Any] = {
            "kind": "replica",
            "trace": trace.source,
            "graph": _smaller(trace.graph).to_json(),
            "parameters": trace.parameters,
            "with_gradient": trace.with_gradient,
            "unused": trace.unused[:50],
            "args": self.recipe.text,
            "assumed": self.recipe.assumed,
            "input_shapes": self.recipe.inputs.shapes(batch),
            "chains": [],
        }
        if "profile" in self.body.get("measures", ()):
            layers = layers_of(trace.graph)
            size, seeds = self._plan(trace, batch)
            bench = self._bench(trace, single(layers), size, keep=seeds == 1)
            answer["profile"] = profile(bench, layers, range(seeds))
            answer["profile_seeds"] = seeds
        if "symmetry" in self.body.get("measures", ()):
            answer["symmetry"] = symmetry(self.recipe, batch, self.body.get("controls") or {})
        if found:
            size, seeds = self._plan(trace, batch)
            measured, size = self._measure(trace, [c for _, c in found], size, seeds)
            answer["input_shapes"] = self.recipe.inputs.shapes(size)
            answer["chains"] = [
                {**_describe(c, trace), "index": i, "seeds": seeds, **m} for (i, c), m in zip(found, measured)
            ]
        return answer

    def _trace(self, seen: Seen, batch: Any) -> _Trace:
        model, tracer = seen.model, seen.tracer
        graph = _with_inits(tracer.graph("hooks"), seen.weights)
        named = list(model.named_parameters())
        trainable = [(n, p) for n, p in named if p.requires_grad]
        if trainable:
            loss = cotangent_loss(seen.outputs, 0)
            found = torch.autograd.grad(loss, [p for _, p in trainable], allow_unused=True)
        else:
            found = ()
        samples = max((s[0] for s in self.recipe.inputs.shapes(batch)), default=1)
        parameters = sum(p.numel() for _, p in named)
        source = self._agrees(model, graph, batch) if tracer.work < SYMBOLIC_WORK else "hooks"
        return _Trace(
            graph=LayerGraph(graph.nodes, source, graph.complete),
            source=source,
            calls=tracer.calls(),
            cost=(tracer.multiply_adds * _PER_MULTIPLY_ADD + tracer.values * _PER_VALUE) / samples,
            fixed_cost=parameters * _PER_PARAMETER + len(graph.nodes) * _PER_OPERATION,
            second_order=tracer.second_order,
            weights=seen.weights,
            with_gradient=sum(g is not None for g in found),
            unused=[n for (n, _), g in zip(trainable, found) if g is None],
            parameters=parameters,
        )

    def _on_small_images(self, trace: _Trace, batch: Any) -> _Trace:
        """The same model on images of :data:`SMALL_SIDE`, where it takes them and shows the same chains.

        The lines between sick and healthy were drawn on images of that size. On noise the gradients of a first
        convolution add up over positions as a random walk, those of the last one in step: rho_W falls with the side.
        """
        usual, smaller = self.recipe.inputs, with_side(self.recipe.inputs, SMALL_SIDE)
        if smaller is None:
            return trace
        self.recipe.inputs = smaller
        try:
            model = self.recipe.build(0)
            other = self._trace(observe(model, {}, smaller, batch), batch)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, ZeroDivisionError, TooLarge):
            other = None
        if other is None or _paths(other.graph) != _paths(trace.graph):
            self.recipe.inputs = usual
            return trace
        return replace(trace, cost=other.cost, fixed_cost=other.fixed_cost, calls=other.calls, weights=other.weights)

    def _agrees(self, model: nn.Module, graph: LayerGraph, batch: Any) -> str:
        """Which trace the graph stands for: the symbolic one where it shows the same chains."""
        if len(graph.nodes) > GRAPH_LIMIT:
            return "hooks"
        args, kwargs = self.recipe.inputs.make(batch, 0)
        try:
            other = symbolic(model, args, kwargs)
        except Exception:  # torch.fx refuses in many ways; the real run is there anyway
            return "hooks"
        return "symbolic" if _paths(other) == _paths(graph) else "hooks"

    def _plan(self, trace: _Trace, batch: Any) -> Tuple[Any, int]:
        """Batch size and number of seeds that keep within a few seconds, by the cost model."""
        size = batch
        if batch is not None:
            shapes = self.recipe.inputs.shapes(batch)
            size = 128 if all(len(s) <= 2 for s in shapes) else 32
            while size > 8 and size * trace.cost > _RUN_SECONDS:
                size //= 2
            if size * trace.cost > 4 * _RUN_SECONDS:
                size = 4
        samples = size or max((s[0] for s in self.recipe.inputs.shapes(None)), default=1)
        per_run = trace.fixed_cost + samples * trace.cost
        for seeds, seconds in ((SEEDS, _TOTAL_SECONDS), (3, 1.3 * _TOTAL_SECONDS)):
            if seeds * _RUNS * per_run <= seconds:
                return size, seeds
        return size, 1

    def _measure(
        self, trace: _Trace, found: Sequence[Chain], size: Any, seeds: int
    ) -> Tuple[List[Dict[str, Any]], Any]:
        bench = self._bench(trace, found, size, keep=seeds == 1)
        explicit = tuple(n for n in trace.graph.nodes if n.init.startswith("normal:"))
        try:
            written = measure(bench, range(seeds), None)
        except ProbeError:
            raise
        except RuntimeError:
            if size in (None, self.recipe.inputs.batch):
                raise
            size = self.recipe.inputs.batch  # the model insists on the batch that the search found
            bench = self._bench(trace, found, size, keep=seeds == 1)
            written = measure(bench, range(seeds), None)
        results: List[Dict[str, Any]] = []
        left = SICK_LIMIT
        for i, (chain, numbers) in enumerate(zip(found, written)):
            after: Dict[str, Any] = {}
            if left and (_may_be_sick(numbers) or ("scale" in self.body.get("measures", ()) and is_large(numbers))):
                left -= 1
                also = explicit if chain.layers[0].init != "default" else ()
                after = self._remedies(bench, chain, i, seeds, also)
            results.append({"written": numbers, "after": after, "second_order": trace.second_order})
        return results, size

    def _remedies(self, bench: Bench, chain: Chain, index: int, seeds: int, also: Tuple[Node, ...]) -> Dict[str, Any]:
        """The numbers under each remedy. ``also``: what the program initialises by itself, where it does so here."""
        after: Dict[str, Any] = {}
        for name in self.body.get("remedies", ()):
            if not _fits(name, chain) or (name == "layer_norm" and _cures(after.get("batch_norm"))):
                continue
            after[name] = measure(bench, range(seeds), Remedy(name, chain, also))[index]
        return after

    def _bench(self, trace: _Trace, found: Sequence[Chain], size: Any, keep: bool) -> Bench:
        recipe = self.recipe

        def build_one(seed: int) -> nn.Module:
            model = recipe.build(seed)
            _materialise(model, recipe, size)
            return model

        return Bench(
            build=build_one,
            inputs=lambda seed, double: recipe.inputs.make(size, seed, double),
            chains=found,
            calls=trace.calls,
            controls=self.body.get("controls") or {},
            keep=keep,
        )


def _with_inits(graph: LayerGraph, weights: Mapping[int, Tensor]) -> LayerGraph:
    """The same graph, its weight layers told how they were initialised."""
    inits = {call: init_of(weight) for call, weight in weights.items()}
    nodes = tuple(replace(n, init=inits.get(n.call, n.init)) if n.call is not None else n for n in graph.nodes)
    return LayerGraph(nodes, graph.source, graph.complete)


def _warm_optimizers() -> None:
    """The first optimizer of a class wraps the class's ``step``: not to be taken for tampering."""
    for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        optimizer([torch.zeros(1, requires_grad=True)], lr=0.0)


def _materialise(model: nn.Module, recipe: build.Recipe, batch: Any) -> None:
    """Lazy layers get their shapes from a first forward."""
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        args, kwargs = recipe.inputs.make(batch, 0)
        with torch.no_grad():
            model(*args, **kwargs)


def _paths(graph: LayerGraph) -> List[List[str]]:
    return [[n.path for n in c.layers] for c in chains(graph)]


def _may_be_sick(numbers: Mapping[str, Any]) -> bool:
    values = (numbers.get("rho_W"), numbers.get("rho_delta"))
    return not numbers["no_gradient"] and any(v is not None and not v >= MARGIN for v in values)


def _cures(numbers: Any) -> bool:
    """Healthy, and not exploding: then no second normalization need be tried."""
    if not numbers or numbers["no_gradient"]:
        return False
    ratios = [float(numbers["rho_W"]), float(numbers["rho_delta"])]
    return min(ratios) >= 0.1 and max(ratios) <= 100.0


_TANH_LIKE = frozenset({"tanh", "hardtanh", "softsign", "elu", "selu", "celu", "tanhshrink", "sin", "cos"})


def _fits(remedy: str, chain: Chain) -> bool:
    """Whether a remedy is one for the chain's activation."""
    ops = Counter(a.op for link in chain.activations for a in link)
    if remedy == "relu_he":
        return any(op in SIGMOID_LIKE for op in ops)
    most = ops.most_common(1)[0][0] if ops else ""
    if remedy == "he":
        return most not in _TANH_LIKE
    if remedy in ("xavier", "lecun"):
        return most in _TANH_LIKE or most in SIGMOID_LIKE
    return True


def _describe(chain: Chain, trace: _Trace) -> Dict[str, Any]:
    first, last = chain.layers[0], chain.layers[-1]
    norms = Counter(n.op for link in chain.norms for n in link)
    weights = [trace.weights.get(n.call if n.call is not None else -1) for n in chain.layers]
    fan_ins = [n.fan_in for n in chain.layers]
    hidden = weights[:-1] or weights
    return {
        "first": first.path,
        "last": last.path,
        "depth": chain.depth,
        "last_hidden": chain.last_hidden,
        "first_line": first.line,
        "last_line": last.line,
        "activations": dict(Counter(a.op for link in chain.activations for a in link)),
        "norms": dict(norms),
        "norm_links": sum(1 for link in chain.norms if link),
        "default_init": all(w is not None and is_default(w) for w in hidden),
        "weight_std_ratio": [_rounded(default_std_ratio(w)) if w is not None else None for w in weights],
        "fan_ins": fan_ins,
        "square": len(set(fan_ins[1:])) <= 1 and first.op == "linear",
        "ndim_input": first.attrs.get("ndim"),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _smaller(graph: LayerGraph) -> LayerGraph:
    """A large graph without its transparent nodes: what they joined is joined directly; chains stay as they are."""
    if len(graph.nodes) <= GRAPH_LIMIT:
        return graph
    ahead: Dict[int, Tuple[int, ...]] = {}
    kept: List[Node] = []
    for n in graph.nodes:
        inputs = tuple(j for i in n.inputs for j in ahead.get(i, (i,)))
        if n.kind == TRANSPARENT and len(inputs) == 1:
            ahead[n.id] = inputs
        else:
            kept.append(Node(**{**n.__dict__, "inputs": inputs}))
    return LayerGraph(tuple(kept), graph.source, graph.complete)
