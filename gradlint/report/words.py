"""The numbers of an experiment, and the reasons for the lack of one, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradlint.rule import Judgement

_REMEDIES = {
    "relu_he": "ReLU and He init",
    "he": "He init",
    "xavier": "Xavier init",
    "lecun": "LeCun init",
    "orthogonal": "orthogonal init",
    "batch_norm": "BatchNorm",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
}

_MODEL_NUMBERS = {
    "rho_W": "the first layer's weight gradient is {} of the last hidden layer's",
    "rho_delta": "the gradient at the first layer's output is {} of that at the last hidden layer's",
    "sigma_out": "the output varies by {} over the batch",
}

_REASONS = {
    "no-torch": ("no interpreter with torch was found", ""),
    "torch-too-old": ("the torch that was found is too old: the probe needs 2.4 or later", ""),
    "probe-off": ("experiments are switched off", ""),
    "vetoed": ("the code was not run", "it would do something that the probe does not allow"),
    "not-sliced": ("the statements could not be cut out to run on their own", ""),
    "not-built": (
        "the model could not be built",
        "give the shape of its input: `# gradlint: input=(32, 10)` on the class line, or [tool.gradlint.inputs]",
    ),
    "not-traced": ("the forward pass could not be followed", ""),
    "no-gradient": ("no gradient reached the place to measure, also after three optimizer steps", ""),
    "timeout": ("the experiment ran out of time", "give it more with --probe-timeout"),
    "memory": ("the experiment ran out of memory", "a smaller model in the same shape would do"),
    "worker-died": ("the worker process died", ""),
    "budget": ("the time for experiments was used up", "give more with --probe-budget, or lint fewer files"),
    "tampered": ("the code under test changed the instruments", ""),
    "inconclusive": ("the numbers lie between sick and healthy", ""),
}


def measured_line(judgement: Judgement) -> str:
    """One line with the numbers, ``""`` where nothing was measured."""
    measured = judgement.measured
    if not measured:
        return ""
    if "clip_saw" in measured:
        return _clip_line(judgement)
    if "rho_W" in measured:
        return _model_line(judgement)
    return _plain_line(judgement)


def reason_lines(judgement: Judgement) -> tuple[str, str]:
    """Why there is no verdict, and what would make it runnable.

    The advice is ``""`` where nobody can tell, and where the reason holds for the whole run: that is said once.
    """
    if judgement.measured and judgement.reason != "inconclusive" and judgement.detail:
        return judgement.detail, ""
    what, advice = _REASONS.get(judgement.reason or "", (judgement.reason or "it was not run", ""))
    if judgement.detail:
        what = f"{what} ({judgement.detail})"
    return what, advice


def number(value: object) -> str:
    """Three significant digits; text stays as it is (``inf`` and ``nan`` travel as text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.3g}")
    if rounded == 0 or 1e-3 <= abs(rounded) < 1e5:
        text = f"{rounded:.0f}" if abs(rounded) >= 100 else f"{rounded:.6f}".rstrip("0")
        return text + "0" if text.endswith(".") else text
    mantissa, _, exponent = f"{rounded:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _clip_line(judgement: Judgement) -> str:
    measured = judgement.measured
    parts = [f"the clip saw a gradient norm of {_norm(measured['clip_saw'])}"]
    if measured.get("clip_returned") is not None:
        parts[0] += f" and returned {_norm(measured['clip_returned'])}"
    if measured.get("norm_at_step") is not None:
        limit = measured.get("max_norm")
        told = f" (limit {_norm(limit)})" if limit is not None else ""
        parts.append(f"the norm at the optimizer's step was {_norm(measured['norm_at_step'])}{told}")
    after = (judgement.after_remedy or {}).get("norm_at_step")
    if after is not None:
        parts.append(f"after moving the call: {_norm(after)}")
    return "; ".join(parts)


def _norm(value: object) -> str:
    """A norm is never a count: 10 reads 10.0."""
    return number(float(value) if isinstance(value, int) else value)


def _model_line(judgement: Judgement) -> str:
    measured, lines, after = judgement.measured, judgement.threshold, judgement.after_remedy or {}
    fired = _fired(measured, lines)
    parts = []
    for key in fired:
        said = _MODEL_NUMBERS[key].format(number(measured[key]))
        told = [f"sick below {number(lines[key])}"] if key in lines else []
        if key == "rho_W" and measured.get("predicted") is not None:
            told.append(f"predicted on paper: {number(measured['predicted'])}")
        parts.append(said + (f" ({', '.join(told)})" if told else ""))
    text = " and ".join(parts)
    chain = measured.get("chain")
    if isinstance(chain, Sequence) and not isinstance(chain, str) and len(chain) == 2:
        text = f"from `{chain[0]}` to `{chain[1]}`, {text}"
    cures = [number(after[key]) for key in fired if key in after]
    if cures:
        remedy = after.get("remedy")
        name = _REMEDIES.get(remedy, str(remedy)) if isinstance(remedy, str) else "the remedy"
        text += f"; with {name}: {' and '.join(cures)}"
    return text


def _fired(measured: Mapping[str, Any], lines: Mapping[str, Any]) -> list[str]:
    """The numbers that are past their line; ``rho_delta`` and ``sigma_out`` speak together only."""
    past = {key for key in _MODEL_NUMBERS if _below(measured.get(key), lines.get(key))}
    fired = ["rho_W"] if "rho_W" in past else []
    if {"rho_delta", "sigma_out"} <= past and not fired:
        fired += ["rho_delta", "sigma_out"]
    return fired or ["rho_W"]


def _below(value: object, line: object) -> bool:
    return isinstance(value, int | float) and isinstance(line, int | float) and value < line


def _plain_line(judgement: Judgement) -> str:
    text = _pairs(judgement.measured)
    if judgement.after_remedy:
        text += f"; after the remedy: {_pairs(judgement.after_remedy)}"
    return text


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in values.items() if value is not None)


def remedy_name(remedy: str) -> str:
    """A remedy for a chain, in words."""
    return _REMEDIES.get(remedy, remedy)
