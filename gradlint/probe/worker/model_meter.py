"""Measure how far a gradient gets along the chains of a model: as written, and under a remedy.

One run is one forward and one backward of the real model, with the weights of the chains' ends replaced by aliases of
themselves, so that a layer that is called several times is read per call and a normalised or parametrised weight is
read as it is used. The loss is a random cotangent, the sum of <y, v> over all floating outputs with v ~ N(0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from trace import Intervention, Tracer
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from layergraph import SIGMOID_LIKE, Chain, Node
from model_inputs import seed_all
from model_weights import Names
from probe_errors import ProbeError
from torch import Tensor, nn

INITIALISERS = frozenset({"he", "relu_he", "xavier", "lecun"})
NORMALIZATIONS = frozenset({"batch_norm", "layer_norm"})
UNDERFLOW = 1e-30
"""A ratio below this is computed again in double precision: float32 ends at 1e-45."""
ADAM_STEPS, ADAM_RATE = 3, 1e-3
"""A zero-initialised head hides every gradient before it until it has moved."""

SATURATING = {"sigmoid": 2.944, "tanh": 1.472, "hardtanh": 0.9, "hardsigmoid": 2.7, "softsign": 9.0}
"""Inputs beyond which an activation lies within 5 % of its range of an asymptote."""

Builder = Callable[[int], nn.Module]
"""seed -> the model, in training mode."""
Inputs = Callable[[int, bool], Tuple[List[Any], Dict[str, Any]]]
"""(seed, double precision) -> positional and keyword arguments of a forward."""


@dataclass(frozen=True)
class Numbers:
    """One chain in one run. ``rho_W`` and ``rho_delta`` are None where the last hidden gradient is 0 or not finite."""

    rho_W: Optional[float]
    rho_delta: Optional[float]
    sigma_out: float
    vanished: bool
    """A gradient underflowed: exactly 0 at the first layer, but not at the last."""
    saturated: float = 0.0
    """The largest share of values of one activation that lie within 5 % of its range of an asymptote."""


@dataclass(frozen=True)
class Remedy:
    """One of the closed list of edits, on one chain."""

    name: str
    chain: Chain
    also: Tuple[Node, ...] = ()
    """Layers elsewhere in the model that an initialiser is for, too."""

    @property
    def layers(self) -> Dict[int, Tuple[int, int]]:
        """Running number of each weight layer -> (fan_in, fan_out)."""
        return {n.call: (n.fan_in or 1, n.fan_out or 1) for n in (*self.chain.layers, *self.also) if n.call is not None}

    @property
    def normalised(self) -> FrozenSet[int]:
        """The weight layers that get a normalization: all but the last."""
        return frozenset(n.call for n in self.chain.layers[:-1] if n.call is not None)

    @property
    def sigmoids(self) -> FrozenSet[int]:
        """Running numbers of the hidden sigmoid-like activations."""
        links = self.chain.activations
        return frozenset(a.call for link in links for a in link if a.op in SIGMOID_LIKE and a.call is not None)


@dataclass
class Meter(Intervention):
    """Reads the ends of ``chains`` and applies ``remedy``."""

    chains: Sequence[Chain]
    remedy: Optional[Remedy] = None
    generator: Optional[torch.Generator] = None
    linear_activations: bool = False
    """Control: activations become the identity."""
    silent_layers: bool = False
    """Control: weight layers give zeros."""
    weights: Dict[int, Tensor] = field(default_factory=dict)
    deltas: Dict[int, float] = field(default_factory=dict)
    spreads: Dict[int, float] = field(default_factory=dict)
    saturations: Dict[int, float] = field(default_factory=dict)
    fresh: Dict[Any, Tensor] = field(default_factory=dict)
    """Weights that a remedy has put in place of the model's; kept over the steps of one run."""

    def __post_init__(self) -> None:
        self._ends = {n.call for c in self.chains for n in (c.layers[0], c.layers[c.last_hidden])}
        self._outs = {c.layers[-1].call for c in self.chains}
        self._initialised = self.remedy.layers if self.remedy and self.remedy.name in INITIALISERS else {}
        normalises = self.remedy is not None and self.remedy.name in NORMALIZATIONS
        self._normalised = self.remedy.normalised if self.remedy and normalises else frozenset()
        rectifies = self.remedy is not None and self.remedy.name == "relu_he"
        self._rectified = self.remedy.sigmoids if self.remedy and rectifies else frozenset()

    def weight(self, call: int, weight: Tensor, names: Names) -> Tensor:
        """An alias of the weight, or of its replacement."""
        if call in self._initialised:
            key = names if names and names[0] else call
            if key not in self.fresh:
                self.fresh[key] = self._initialise(weight, *self._initialised[call])
            weight = self.fresh[key]
        if call not in self._ends:
            return weight
        alias = weight.view_as(weight) if weight.requires_grad else weight.detach().requires_grad_()
        self.weights[call] = alias
        return alias

    def bias(self, call: int, bias: Tensor) -> Tensor:
        """Zero, where the chain is initialised anew."""
        return torch.zeros_like(bias) if call in self._initialised else bias

    def output(self, call: int, output: Tensor, op: str) -> Tensor:
        """Reads the output, and the gradient that comes back to it; then normalises it."""
        if call in self._ends and output.requires_grad:
            output.register_hook(lambda g: self.deltas.__setitem__(call, norm(g)))  # type: ignore[no-untyped-call]
        if self.silent_layers:
            output = output * 0.0
        if call in self._outs:
            self.spreads[call] = spread(output)
        if call not in self._normalised or self.remedy is None:
            return output
        return normalise(output, op, self.remedy.name)

    def activation(self, call: int, op: str, value: Tensor) -> Optional[Tensor]:
        """ReLU instead of a sigmoid, or nothing at all."""
        if op in SATURATING:
            self.saturations[call] = float((value.detach().abs() > SATURATING[op]).double().mean())
        if self.linear_activations:
            return value
        return torch.relu(value) if call in self._rectified else None

    def _initialise(self, weight: Tensor, fan_in: int, fan_out: int) -> Tensor:
        fresh = torch.empty_like(weight, requires_grad=False)
        name = self.remedy.name if self.remedy else ""
        if name == "xavier":
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            fresh.uniform_(-bound, bound, generator=self.generator)
        else:
            fresh.normal_(0.0, math.sqrt((1.0 if name == "lecun" else 2.0) / fan_in), generator=self.generator)
        return fresh.requires_grad_()

    def read(self, gradients: Mapping[int, float]) -> List[Numbers]:
        """The numbers of each chain, from the norms of the gradients of the aliases."""
        return [self._of_chain(c, gradients) for c in self.chains]

    def _of_chain(self, chain: Chain, gradients: Mapping[int, float]) -> Numbers:
        first, last, out = chain.layers[0], chain.layers[chain.last_hidden], chain.layers[-1]
        w_first = gradients.get(_call(first), 0.0) / math.sqrt(first.fan_in or 1)
        w_last = gradients.get(_call(last), 0.0) / math.sqrt(last.fan_in or 1)
        d_first, d_last = self.deltas.get(_call(first), 0.0), self.deltas.get(_call(last), 0.0)
        rho_w, rho_d = ratio(w_first, w_last), ratio(d_first, d_last)
        gone = w_first == 0.0 or d_first == 0.0 or min(rho_w or 1.0, rho_d or 1.0) < UNDERFLOW
        calls = [a.call for link in (*chain.activations, chain.tail) for a in link if a.call is not None]
        saturated = max((self.saturations.get(c, 0.0) for c in calls), default=0.0)
        return Numbers(rho_w, rho_d, self.spreads.get(_call(out), math.nan), gone, saturated)


def _call(node: Any) -> int:
    return int(node.call)


def ratio(first: float, last: float) -> Optional[float]:
    """``first / last``; None where the last is 0 or not finite, so that 0/0 is never a number."""
    if last == 0.0 or not math.isfinite(last) or math.isnan(first):
        return None
    return first / last


def norm(tensor: Tensor) -> float:
    """Euclidean norm, in double precision: the squares of small gradients underflow before they do."""
    return float(torch.linalg.vector_norm(tensor.detach().double()))


def spread(output: Tensor) -> float:
    """Standard deviation over the batch (the first dimension), averaged over units."""
    rows = output.detach().double()
    if rows.dim() < 2 or rows.shape[0] < 2:
        rows = rows.reshape(-1, 1)
    return float(rows.std(dim=0).mean()) if rows.shape[0] > 1 else 0.0


def normalise(output: Tensor, op: str, name: str) -> Tensor:
    """BatchNorm with batch statistics, or LayerNorm (one group over all channels for convolutions); no affine part."""
    if op.startswith("conv"):
        if name == "layer_norm":
            return F.group_norm(output, 1)
        return F.batch_norm(output, None, None, training=True)
    if name == "layer_norm":
        return F.layer_norm(output, output.shape[-1:])
    return F.batch_norm(output.reshape(-1, output.shape[-1]), None, None, training=True).reshape(output.shape)


@dataclass(frozen=True)
class Bench:
    """Everything a run needs: how to build and feed the model, and what its calls must look like."""

    build: Builder
    inputs: Inputs
    chains: Sequence[Chain]
    calls: Tuple[Tuple[str, str], ...]
    """(kind, op) of the numbered calls, in order. A run that differs measured something else."""
    controls: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    """Keep the built model from run to run: one seed, and a model so large that building it costs."""
    kept: Dict[int, nn.Module] = field(default_factory=dict)

    def run(self, seed: int, remedy: Optional[Remedy], double: bool, steps: int = 0) -> List[Numbers]:
        """One run: build, forward, backward; after ``steps`` optimizer steps on the same batch."""
        model = self.kept[seed] if seed in self.kept and not double and not steps else self.build(seed)
        if double:
            model = model.double()
        elif self.keep and not steps:
            self.kept[seed] = model
        args, kwargs = self.inputs(seed, double)
        meter = self.meter(seed, remedy)
        optimizer: Optional[torch.optim.Optimizer] = None
        for _ in range(steps):
            loss = self.loss(model, args, kwargs, meter, seed)
            optimizer = optimizer or torch.optim.Adam(_trainable(model, meter), lr=ADAM_RATE)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        loss = self.loss(model, args, kwargs, meter, seed)
        ends = sorted(meter.weights)
        meter.deltas.clear()
        found = torch.autograd.grad(loss, [meter.weights[c] for c in ends], allow_unused=True)
        if self.controls.get("stub") == "backward":
            meter.deltas.clear()
            return meter.read({})
        return meter.read({c: norm(g) if g is not None else 0.0 for c, g in zip(ends, found)})

    def meter(self, seed: int, remedy: Optional[Remedy]) -> Meter:
        """What reads one run."""
        generator = torch.Generator().manual_seed(seed + 1000)
        remedy = None if self.controls.get("identity_remedies") else remedy
        linear = self.controls.get("stub") == "activation"
        silent = self.controls.get("stub") == "layer"
        return Meter(self.chains, remedy, generator, linear_activations=linear, silent_layers=silent)

    def loss(self, model: nn.Module, args: List[Any], kwargs: Dict[str, Any], meter: Meter, seed: int) -> Tensor:
        """The forward of one run, and a random cotangent of its outputs."""
        seed_all(seed + 2000)  # dropout
        tracer = Tracer(model, {}, meter)
        _, outputs = tracer.trace(args, kwargs)
        if tracer.calls() != self.calls:
            raise ProbeError("not-traced", "the order of layers changes from call to call")
        return cotangent_loss(outputs, seed)


def _trainable(model: nn.Module, meter: Meter) -> List[Tensor]:
    return [p for p in model.parameters() if p.requires_grad] + list(meter.fresh.values())


def cotangent_loss(outputs: Sequence[Tensor], seed: int) -> Tensor:
    """The sum of <y, v> over the outputs, v ~ N(0, 1). Raises ``no-gradient`` where no output has one."""
    generator = torch.Generator().manual_seed(seed + 3000)
    total: Optional[Tensor] = None
    for y in outputs:
        if not y.requires_grad:
            continue
        y = torch.view_as_real(y) if y.is_complex() else y
        part = (y * torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y.dtype)).sum()
        total = part if total is None else total + part
    if total is None:
        raise ProbeError("no-gradient", "nothing that the model returns depends on its parameters")
    return total


def measure(bench: Bench, seeds: Sequence[int], remedy: Optional[Remedy]) -> List[Dict[str, Any]]:
    """What the seeds agree on, per chain: medians in log space, or that there is no gradient."""
    runs = [bench.run(s, remedy, double=False) for s in seeds]
    starts = [_start([run[i] for run in runs]) for i in range(len(bench.chains))]
    double = any(n.vanished or n.rho_W is None or n.rho_delta is None for run in runs for n in run)
    if double:
        runs = _in_double(bench, seeds, remedy) or runs
    summaries = [_summary([run[i] for run in runs]) for i in range(len(bench.chains))]
    if any(s["no_gradient"] for s in summaries):
        after = [bench.run(s, remedy, double=False, steps=ADAM_STEPS) for s in seeds[:3]]
        for i, s in enumerate(summaries):
            if s["no_gradient"]:
                summaries[i] = {**_summary([run[i] for run in after]), "after_steps": ADAM_STEPS}
    return [{**s, "start": start} for s, start in zip(summaries, starts)]


def _start(numbers: Sequence[Numbers]) -> Dict[str, Any]:
    """The scale of a chain before any optimizer step, whatever its gradients are."""
    finite = sum(math.isfinite(n.sigma_out) for n in numbers)
    return {
        "sigma_out": _median([n.sigma_out for n in numbers if math.isfinite(n.sigma_out)]) if finite else math.nan,
        "saturated": sorted(n.saturated for n in numbers)[len(numbers) // 2],
        "finite": 2 * finite > len(numbers),
    }


def _in_double(bench: Bench, seeds: Sequence[int], remedy: Optional[Remedy]) -> Optional[List[List[Numbers]]]:
    try:
        return [bench.run(s, remedy, double=True) for s in seeds]
    except RuntimeError:
        return None  # code that asks for float32 by name: the single precision numbers stand


def _summary(numbers: Sequence[Numbers]) -> Dict[str, Any]:
    good = [n for n in numbers if n.rho_W is not None and n.rho_delta is not None]
    if 2 * len(good) <= len(numbers):
        return {
            "rho_W": None, "rho_delta": None, "sigma_out": _median([n.sigma_out for n in numbers]),
            "finite": all(math.isfinite(n.sigma_out) for n in numbers), "no_gradient": True,
        }  # fmt: skip
    medians = {
        "rho_W": _median([n.rho_W for n in good if n.rho_W is not None]),
        "rho_delta": _median([n.rho_delta for n in good if n.rho_delta is not None]),
        "sigma_out": _median([n.sigma_out for n in good]),
    }
    return {**medians, "finite": all(math.isfinite(v) for v in medians.values()), "no_gradient": False}


def _median(values: Sequence[float]) -> float:
    """The median in log space: the middle one, or the geometric mean of the middle two."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if low == high or low <= 0.0 or not math.isfinite(low * high):
        return low if low == high else (low + high) / 2
    return math.sqrt(low) * math.sqrt(high)
