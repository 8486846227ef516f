"""# symmetric-initialization

## What it does
Finds layers whose weights all start at the same value, zero or another constant, together with those of the layer
behind them, so that their units never become different from each other.

## Why it matters
Units that start alike and are used alike get the same gradient, and stay alike: a layer of 256 of them can do no more
than one (biases that differ can break the tie, and then this rule is silent). With zeros on both sides not even that:
each factor of the product is zero, so neither gets a gradient, and the layers stay at zero for good. Nothing raises an
error, and the bias of the last layer still learns the mean.

## Example
```python
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 10)
        for layer in (self.fc1, self.fc2):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))
```

## Use instead
```python
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 10)
        nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))
```

## How it is confirmed
The model is built and takes three steps of Adam on one batch; a head, a gate or a branch that is zero on purpose has
moved by then and lets gradients through. The finding is confirmed if the gradients of the layer's units are still
equal (their spread at most 1e-6 of the largest), or still all zero. There is no remedy to try: the symptom decides.

## When to ignore it
When the layer is replaced or its weights are loaded before training by code that gradlint cannot see.

## References
- I. Goodfellow, Y. Bengio, A. Courville. Deep Learning, section 8.4, on breaking symmetry. MIT Press 2016.
- E. Hu et al. LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022, arXiv 2106.09685: one factor is random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradlint.facts import FileFacts, ModelFacts
from gradlint.facts.chain_verdict import location_of, model_experiment
from gradlint.facts.constant_weights import Constant, constant_pairs, constants
from gradlint.rule import Candidate, Judgement, Measurement, Rule

EQUAL = 1e-6
"""Spread of the units' gradients, over the largest, up to which they are the same (FAULTS E4)."""


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Constant weights whose neighbours are constant too, one candidate for each call that makes them so."""
    for model in facts.models:
        if not model.initialised_elsewhere:
            yield from _candidates(facts, model, constant_pairs(model))


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every constant weight."""
    for model in facts.models:
        yield from _candidates(facts, model, constants(model))


def _candidates(facts: FileFacts, model: ModelFacts, found: Iterable[Constant]) -> Iterable[Candidate]:
    by_place: dict[tuple[str, int], list[Constant]] = {}
    for constant in found:
        by_place.setdefault(constant.at, []).append(constant)
    for (path, line), layers in by_place.items():
        names = sorted({c.path for c in layers if c.path})
        told = f" of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}" if names else ""
        yield Candidate(
            code="GL304",
            path=facts.path,
            location=location_of(facts.text, line) if path == model.file else model.location,
            symbol=model.symbol,
            message=f"all weights{told} start at one value, and so do those behind: their units never become different",
            help="initialise one of the two layers at random; a zero start is for the last layer of a branch only",
            group=f"{facts.path}:{model.location.line}",
            experiment=model_experiment(facts.path, model, (), ("symmetry",)),
            facts={"paths": names, "made_at": model.made_at},
        )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Still symmetric, or still without any gradient, after three optimizer steps."""
    data = measurement.data
    if data is None:
        return Judgement("unverified", measurement.reason, detail=measurement.detail)
    common: dict[str, Any] = {"kind": "replica", "threshold": {"spread": EQUAL}, "assumed": data["assumed"]}
    paths = candidate.facts["paths"]
    found = [s for s in data.get("symmetry", ()) if not paths or s["path"] in paths]
    if not found:
        return Judgement("refuted", detail="the weights of the built model differ", **common)
    reached = [s for s in found if s["gradient"] is not None]
    if not reached:
        return Judgement("unverified", "no-gradient", detail="no gradient reaches the layer", **common)
    worst = min(reached, key=lambda s: float(s["spread"]))
    measured = {"layer": worst["path"], "spread": worst["spread"], "gradient": worst["gradient"]}
    common["measured"] = {**measured, "value": worst["value"], "after_steps": worst["after_steps"]}
    if float(worst["spread"]) > EQUAL:
        return Judgement("refuted", detail="the units become different", **common)
    return Judgement("confirmed", message=_told(candidate.message, worst), **common)


def _told(message: str, worst: Mapping[str, Any]) -> str:
    if worst["gradient"]:
        return message
    return f"{message.partition(':')[0]}: no gradient reaches them, and they stay where they are"


RULE = Rule(
    code="GL304",
    name="symmetric-initialization",
    severity="error",
    proof="exact",
    summary="constant weights in a layer and the one behind it: the units stay the same for good",
    check=check,
    judge=judge,
    places=places,
    remedy="none: units that stay equal after three steps are the fault itself",
)
