"""Depths, lines and cures: when a chain is suspect, when it is sick, and when a remedy has cured it.

The numbers were measured on torch 2.13 (plain chains, width 64 and 256, N(0, 1) inputs, five seeds) and
checked against 400 steps of training with SGD and Adam; ``benchmarks/`` repeats the gradient part.

Three ratios describe a chain of L weight layers between its ends:

* ``rho_W``: norm of the first layer's weight gradient over that of the last hidden layer, each divided by
  sqrt(fan_in), so that shapes drop out;
* ``rho_delta``: the same for the gradients of the pre-activations;
* ``sigma_out``: the spread of the chain's output over the batch (standard deviation, mean over units).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gradlint.facts.meanfield import Prediction, predict, sigma_w2
from gradlint.probe.worker.layergraph import (
    BATCH_NORMS,
    GELU_LIKE,
    LAYER_NORMS,
    PERIODIC,
    RELU_LIKE,
    SIGMOID_LIKE,
    Chain,
    Node,
    plain_stretch,
)

Family = Literal["sigmoid", "gelu", "relu", "tanh", "other"]
Optimizer = Literal["sgd", "adam", "none"]

SIGMOID_DEPTH = 4
"""Hidden sigmoid stacks: phi' <= 1/4, so no usual initialiser keeps a gradient (Glorot & Bengio 2010)."""
SIGMOID_LAYER_NORM_DEPTH = 6
"""LayerNorm between sigmoid layers only delays it."""
DEFAULT_DEPTH: Mapping[Family, int] = {"gelu": 6, "relu": 8, "tanh": 10, "other": 10}
"""Default-initialised chains without normalization (weights U(+-1/sqrt(fan_in)), sigma_w^2 = 1/3)."""
HEALTHY_DEPTH = 30
"""A fitting initialiser, or BatchNorm in every layer: nothing to say below this depth."""

SICK_RHO_W = 1e-2
SICK_RHO_W_ADAM = 1e-3
"""Adam divides by the gradient's own size and forgives a decade more than SGD."""
SICK_PAIR_SGD = 1e-2
SICK_PAIR = 1e-3
MISFIT_DEPTH = 4
"""Plain layers from which an initialiser with too small weights can make a gradient vanish (FAULTS V6)."""
MIN_DEPTH = 2
"""Chains of fewer weight layers are of no interest to any rule."""

HEALTHY_RHO = 0.1
CURE_FACTOR = 10.0
CURE_CEILING = 100.0
"""A remedy that ends above this has traded vanishing for exploding."""
DEFAULT_STD_TOLERANCE = 0.05
LOW_DIMENSIONAL_INPUT = 4
"""Networks of so few inputs whose derivatives are taken (PINNs) must stay smooth: no normalization there."""


@dataclass(frozen=True)
class ChainView:
    """What the rules ask of a chain, the same for the static and the traced one."""

    depth: int
    sigmoids: int
    family: Family
    activation: str
    plain_depth: int
    """Weight layers in the longest stretch without any normalization."""
    norm_links: int
    batch_normed: bool
    layer_normed: bool
    default_init: bool
    periodic: bool
    input_features: int | None
    ops: frozenset[str] = frozenset()
    """The kinds of weight layer on it, the last one left out: ``linear``, ``conv2d``."""
    open_ended: bool = False
    """Some layer was made in a loop whose length the text does not tell: the chain may be longer than it looks."""
    prediction: Prediction | None = None
    square: bool = False
    misfits: tuple[str, ...] = ()
    """Explicit initialisers of hidden layers that do not fit the activation, as :class:`Node.init` names them."""
    misfit_at: tuple[str, int] | None = None
    """The file and line of the first of them."""


def family_of(op: str) -> Family:
    """The family of an activation, by how it treats a gradient."""
    if op in SIGMOID_LIKE:
        return "sigmoid"
    if op in RELU_LIKE:
        return "relu"
    if op in GELU_LIKE:
        return "gelu"
    return "tanh"


def view(chain: Chain, default_init: bool | None = None) -> ChainView:
    """Describe a chain; ``default_init`` is what the built model shows, else the static initialisers decide."""
    acts = [a.op for link in chain.activations for a in link]
    counts = Counter(family_of(a) for a in acts)
    sigmoids = counts.get("sigmoid", 0)
    if sigmoids >= SIGMOID_DEPTH - 1:
        family: Family = "sigmoid"
    else:
        counts.pop("sigmoid", None)
        family = counts.most_common(1)[0][0] if counts else "other"
    links = [{n.op for n in link} for link in chain.norms]
    if default_init is None:
        default_init = all(layer.init == "default" for layer in chain.layers[:-1] or chain.layers)
    misfits = _misfits(chain, family)
    depth = sigmoids + 1 if family == "sigmoid" else chain.depth
    return ChainView(
        depth=depth,
        sigmoids=sigmoids,
        family=family,
        activation=Counter(acts).most_common(1)[0][0] if acts else "",
        plain_depth=plain_stretch(chain),
        norm_links=sum(1 for link in links if link),
        batch_normed=bool(links) and sum(1 for link in links if link & BATCH_NORMS) >= len(links) - 1,
        layer_normed=bool(links) and sum(1 for link in links if link & LAYER_NORMS) >= len(links) - 1,
        default_init=default_init,
        periodic=any(a in PERIODIC for a in acts),
        input_features=chain.layers[0].fan_in,
        ops=frozenset(layer.op for layer in chain.layers[:-1]),
        open_ended=any(layer.attrs.get("uncertain") for layer in chain.layers),
        prediction=_prediction(chain),
        misfits=tuple(layer.init for layer in misfits),
        misfit_at=next(((str(a[0]), int(a[1])) for layer in misfits if (a := layer.attrs.get("init_at"))), None),
        square=len({layer.fan_in for layer in chain.layers[1:]}) == 1 and chain.layers[0].op == "linear",
    )


FITTING: Mapping[Family, tuple[float, float]] = {
    "relu": (1.5, 3.0),
    "gelu": (1.5, 3.5),
    "tanh": (0.8, 3.0),
    "other": (0.8, 3.0),
    "sigmoid": (0.8, 64.0),
}
"""``fan_in * Var(W)`` that keeps a signal through each family (FAULTS C2): He 2, Xavier 1, a tanh gain of 5/3 2.8."""


def _misfits(chain: Chain, family: Family) -> list[Node]:
    low, high = FITTING[family]
    found = []
    for layer in chain.layers[: chain.last_hidden + 1]:
        gain = sigma_w2(layer.init, layer.fan_in) if layer.init != "default" else None
        if gain is not None and not low <= gain <= high:
            found.append(layer)
    return found


def proposes_misfit(v: ChainView) -> bool:
    """Whether an explicit initialiser that does not fit reaches a chain deep enough for it to matter."""
    return v.family != "sigmoid" and not v.periodic and bool(v.misfits) and v.plain_depth >= MISFIT_DEPTH


def may_be_misfit(v: ChainView) -> bool:
    """As :func:`proposes_misfit`, where the prediction on paper, if there is one, does not clear the chain."""
    if not proposes_misfit(v) and not (v.open_ended and v.misfits and v.norm_links == 0 and v.family != "sigmoid"):
        return False
    p = v.prediction
    return v.open_ended or p is None or min(p.rho_W, p.rho_delta) < HEALTHY_RHO


def _prediction(chain: Chain) -> Prediction | None:
    """On paper, for chains without normalization and with one activation after each hidden layer."""
    hidden = chain.last_hidden + 1
    acts = [[a.op for a in link] for link in chain.activations]
    if len(acts) < hidden:
        acts.append([a.op for a in chain.tail])
    if hidden < 2 or any(chain.norms) or any(len(a) != 1 for a in acts[:hidden]):
        return None
    layers = chain.layers[:hidden]
    return predict([a[0] for a in acts[:hidden]], [n.init for n in layers], [n.fan_in for n in layers])


def proposes_sigmoid(v: ChainView) -> bool:
    """Whether a chain is deep enough in sigmoids to be worth an experiment."""
    if v.family != "sigmoid":
        return False
    if v.batch_normed:
        return v.depth >= HEALTHY_DEPTH
    if v.layer_normed:
        return v.depth >= SIGMOID_LAYER_NORM_DEPTH
    return v.depth >= SIGMOID_DEPTH


def proposes_default(v: ChainView) -> bool:
    """Whether a default-initialised chain is deep enough to be worth an experiment."""
    return v.family != "sigmoid" and v.default_init and v.plain_depth >= DEFAULT_DEPTH[v.family]


def may_be_sigmoid_stack(v: ChainView) -> bool:
    """As :func:`proposes_sigmoid`, or of a depth that only the built model can tell."""
    return proposes_sigmoid(v) or (v.open_ended and v.sigmoids > 0 and not v.batch_normed)


def may_be_default_stack(v: ChainView) -> bool:
    """As :func:`proposes_default`, or of a depth that only the built model can tell."""
    open_plain = v.open_ended and v.depth > 1 and v.sigmoids == 0 and v.norm_links == 0
    return proposes_default(v) or (open_plain and v.default_init)


def worth_a_look(chain: Chain) -> bool:
    """Whether any rule could speak of the chain: cheaper to ask than :func:`view`."""
    if chain.depth < MIN_DEPTH:
        return False
    sigmoid = any(a.op in SIGMOID_LIKE for link in chain.activations for a in link)
    length = chain.depth if sigmoid or chain.depth >= HEALTHY_DEPTH else plain_stretch(chain)
    open_ended = any(layer.attrs.get("uncertain") for layer in chain.layers)
    return length >= SIGMOID_DEPTH or (open_ended and (sigmoid or not any(chain.norms)))


def predicted_sick(v: ChainView, optimizer: Optimizer) -> bool:
    """Whether the mean-field prediction alone is past the confirmed line."""
    line = SICK_RHO_W_ADAM if optimizer == "adam" else SICK_RHO_W
    return not v.open_ended and v.prediction is not None and v.prediction.rho_W < line


def fired(m: Mapping[str, Any], optimizer: Optimizer) -> tuple[str, ...]:
    """The quantities that are past the line of the optimizer in use; empty: not sick."""
    rho_w, rho_d, sigma = number(m.get("rho_W")), number(m.get("rho_delta")), number(m.get("sigma_out"))
    line = SICK_RHO_W_ADAM if optimizer == "adam" else SICK_RHO_W
    out: tuple[str, ...] = ("rho_W",) if rho_w < line else ()
    if optimizer != "adam":
        pair = SICK_PAIR_SGD if optimizer == "sgd" else SICK_PAIR
        if rho_d < pair and sigma < pair:
            out += ("rho_delta", "sigma_out")
    return out


def healthy(m: Mapping[str, Any], optimizer: Optimizer) -> bool:
    """Whether gradients reach the first layer."""
    if number(m.get("rho_W")) < HEALTHY_RHO:
        return False
    return optimizer == "adam" or number(m.get("rho_delta")) >= HEALTHY_RHO


def cured(before: Mapping[str, Any], after: Mapping[str, Any] | None, optimizer: Optimizer) -> bool:
    """Whether a remedy took the chain from sick to healthy without making it explode."""
    if after is None or after.get("no_gradient") or not measured(after):
        return False
    values = [number(after.get(k)) for k in ("rho_W", "rho_delta", "sigma_out")]
    if not after.get("finite", True) or any(not math.isfinite(x) or x > CURE_CEILING for x in values):
        return False
    better = all(number(after.get(k)) >= CURE_FACTOR * number(before.get(k)) for k in fired(before, optimizer))
    return healthy(after, optimizer) and better


def measured(m: Mapping[str, Any]) -> bool:
    """Whether the three numbers are there and are numbers."""
    return all(not math.isnan(number(m.get(k))) for k in ("rho_W", "rho_delta", "sigma_out"))


def number(x: Any) -> float:
    """A number from the wire, where what is not finite travels as text."""
    try:
        return float(x)
    except (TypeError, ValueError):
        return math.nan


def line_of(optimizer: Optimizer) -> dict[str, float]:
    """The thresholds, as evidence prints them."""
    if optimizer == "adam":
        return {"rho_W": SICK_RHO_W_ADAM}
    pair = SICK_PAIR_SGD if optimizer == "sgd" else SICK_PAIR
    return {"rho_W": SICK_RHO_W, "rho_delta": pair, "sigma_out": pair}
