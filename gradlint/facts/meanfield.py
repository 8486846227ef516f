"""The mean-field prediction for plain chains: how far a gradient will have shrunk, on paper.

Length map and backward factor of Poole et al. 2016 (arXiv 1606.05340) and Schoenholz et al. 2017
(arXiv 1611.01232), equations 3 and 7: with pre-activations z = W a + b, Var W = sigma_w^2 / fan_in,
Var b = sigma_b^2 and G ~ N(0, 1),

    q_l   = sigma_w^2 V(q_(l-1)) + sigma_b^2,   V(q) = E phi(sqrt(q) G)^2
    chi_l = sigma_w^2 E phi'(sqrt(q_l) G)^2.

The ratio of first to last hidden weight gradients, each divided by sqrt(fan_in), is then
sqrt(prod chi_l * v_0 / V(q_(H-1))).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_GRID = 161
_REACH = 8.0
_DERIVATIVE_STEP = 1e-4

DEFAULT_SIGMA_W2 = 1.0 / 3.0
"""torch's Linear and Conv default, ``kaiming_uniform_(a=sqrt(5))``: gain^2 = 2 / (1 + 5)."""


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

_PHI: dict[str, Callable[[float], float]] = {
    "sigmoid": _sigmoid,
    "logsigmoid": lambda x: -_softplus(-x),
    "hardsigmoid": lambda x: min(max(x / 6.0 + 0.5, 0.0), 1.0),
    "tanh": math.tanh,
    "hardtanh": lambda x: min(max(x, -1.0), 1.0),
    "softsign": lambda x: x / (1.0 + abs(x)),
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "prelu": lambda x: x if x > 0 else 0.25 * x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "celu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: _SELU_SCALE * (x if x > 0 else _SELU_ALPHA * math.expm1(x)),
    "gelu": lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * math.tanh(_softplus(x)),
    "softplus": _softplus,
    "hardswish": lambda x: x * min(max(x + 3.0, 0.0), 6.0) / 6.0,
    "sin": math.sin,
    "identity": lambda x: x,
}


@dataclass(frozen=True)
class Prediction:
    """``rho_W`` and ``rho_delta`` of a chain, first against last hidden layer (pure ratios)."""

    rho_W: float
    rho_delta: float


@lru_cache(maxsize=1)
def _nodes() -> tuple[tuple[float, float], ...]:
    """Points and weights of a Gaussian average on an even grid."""
    step = 2 * _REACH / (_GRID - 1)
    points = [-_REACH + i * step for i in range(_GRID)]
    weights = [math.exp(-0.5 * x * x) for x in points]
    total = sum(weights)
    return tuple((x, w / total) for x, w in zip(points, weights, strict=True))


def _second_moment(phi: Callable[[float], float], q: float) -> float:
    root = math.sqrt(q)
    return sum(w * phi(root * x) ** 2 for x, w in _nodes())


def _slope_moment(phi: Callable[[float], float], q: float) -> float:
    root, h = math.sqrt(q), _DERIVATIVE_STEP
    return sum(w * ((phi(root * x + h) - phi(root * x - h)) / (2 * h)) ** 2 for x, w in _nodes())


def sigma_w2(init: str, fan_in: int | None) -> float | None:
    """``fan_in * Var(W)`` of an initialiser as :class:`Node.init` names it, or None where it is not known."""
    if init == "default":
        return DEFAULT_SIGMA_W2
    if init == "he":
        return 2.0
    if init in ("xavier", "orthogonal", "lecun"):
        return 1.0
    if init.startswith("gain:"):
        return float(init[5:])
    if init.startswith("normal:") and fan_in:
        return fan_in * float(init[7:]) ** 2
    return None


def predict(
    activations: Sequence[str], inits: Sequence[str], fan_ins: Sequence[int | None], input_second_moment: float = 1.0
) -> Prediction | None:
    """The prediction for a plain chain of ``len(activations)`` hidden layers.

    Args:
        activations: canonical name of the activation after each hidden layer.
        inits: initialiser of each hidden layer, as :class:`Node.init` names it.
        fan_ins: fan_in of each hidden layer; None where unknown (then only the bias term is affected).
        input_second_moment: E x^2 of the chain's input.

    Returns:
        None where an activation or initialiser has no closed form here, or where the recursion overflows.
    """
    v, chi_product, v_last = input_second_moment, 1.0, input_second_moment
    for i, (name, init, fan_in) in enumerate(zip(activations, inits, fan_ins, strict=True)):
        phi = _PHI.get(name)
        gain = sigma_w2(init, fan_in)
        if phi is None or gain is None:
            return None
        bias = DEFAULT_SIGMA_W2 / fan_in if init == "default" and fan_in else 0.0
        q = gain * v + bias
        if not 0.0 <= q < 1e12:
            return None
        v_last = v
        if i < len(activations) - 1:
            # chi of layer i carries the gradient from layer i + 1 back to layer i.
            following = sigma_w2(inits[i + 1], fan_ins[i + 1])
            if following is None:
                return None
            chi_product *= following * _slope_moment(phi, q)
        v = _second_moment(phi, q)
    if v_last <= 0.0 or not math.isfinite(chi_product):
        return None
    return Prediction(math.sqrt(chi_product * input_second_moment / v_last), math.sqrt(chi_product))
