"""The prediction on paper, and the lines between sick and healthy."""

from __future__ import annotations

import math

import pytest

from gradlint.facts.meanfield import predict
from gradlint.facts.vanishing import cured, fired, healthy

# First/last hidden weight-gradient ratios of plain chains, measured on torch 2.13 (width 64, 5 seeds).
MEASURED = [
    ("sigmoid", "default", 6, 9e-4),
    ("sigmoid", "default", 12, 3e-9),
    ("sigmoid", "xavier", 8, 1e-4),
    ("sigmoid", "he", 10, 5e-5),
    ("relu", "default", 8, 0.12),
    ("relu", "default", 12, 2e-3),
    ("relu", "default", 20, 1e-6),
    ("gelu", "default", 8, 0.03),
    ("gelu", "default", 12, 1e-4),
    ("tanh", "default", 12, 0.033),
    ("tanh", "default", 20, 4e-4),
    ("tanh", "xavier", 20, 1.2),
    ("silu", "default", 10, 1e-3),
    ("selu", "default", 20, 0.059),
]


def test_the_prediction_is_mostly_within_half_a_decade() -> None:
    """It treats samples as uncorrelated, so a few cells are off by more; none by a decade."""
    errors = []
    for activation, init, depth, ratio in MEASURED:
        hidden = depth - 1
        prediction = predict([activation] * hidden, [init] * hidden, [64] * hidden)
        assert prediction is not None
        errors.append(abs(math.log10(prediction.rho_W / ratio)))
    assert sum(e < 0.5 for e in errors) >= 0.85 * len(errors)
    assert max(errors) < 1.0


def test_no_prediction_for_what_has_no_closed_form() -> None:
    assert predict(["relu", "prelu6"], ["default"] * 2, [64] * 2) is None
    assert predict(["relu"] * 2, ["loaded"] * 2, [64] * 2) is None


def numbers(rho_w: float, rho_d: float, sigma: float) -> dict[str, float]:
    return {"rho_W": rho_w, "rho_delta": rho_d, "sigma_out": sigma}


@pytest.mark.parametrize(
    ("m", "sgd", "adam", "none"),
    [
        (numbers(7e-4, 4e-4, 3e-5), True, True, True),  # sigmoid L=6
        (numbers(0.031, 0.020, 0.0015), False, False, False),  # sigmoid L=4: inconclusive
        (numbers(0.10, 4.4e-3, 6.6e-4), True, False, False),  # ReLU L=8 default
        (numbers(1.9e-3, 1.2e-4, 1.8e-5), True, False, True),  # ReLU L=12 default
    ],
)
def test_lines_depend_on_the_optimizer(m: dict[str, float], sgd: bool, adam: bool, none: bool) -> None:
    assert [bool(fired(m, o)) for o in ("sgd", "adam", "none")] == [sgd, adam, none]


def test_a_cure_is_healthy_better_and_does_not_explode() -> None:
    sick = numbers(1.9e-3, 1.2e-4, 1.8e-5)
    assert cured(sick, numbers(0.26, 0.97, 0.49), "none")
    assert not cured(sick, numbers(189.0, 125.0, 0.3), "none")
    assert not cured(sick, numbers(0.05, 0.9, 0.5), "none")
    assert not cured(sick, {**numbers(0.5, 0.5, 0.5), "rho_W": "nan"}, "none")
    assert not cured(sick, None, "none")


def test_adam_forgives_the_activations_shrinking() -> None:
    assert healthy(numbers(0.2, 0.01, 0.01), "adam")
    assert not healthy(numbers(0.2, 0.01, 0.01), "sgd")
