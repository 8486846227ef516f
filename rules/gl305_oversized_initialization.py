"""# oversized-initialization

## What it does
Finds an explicit initialiser that makes weights so large that the outputs explode, or that the activations saturate,
before any training.

## Why it matters
`normal_()` without a standard deviation, `uniform_(-1, 1)` and `torch.randn(n, m)` give weights of a size that has
nothing to do with the number of inputs. A layer of 256 inputs then makes its output sixteen times as large as its
input, and each further layer does it again. The first loss is in the thousands, sigmoid and tanh sit where they are
flat, softmax is one-hot, and the first steps go wherever the largest numbers push.

## Example
```python
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(128, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.normal_(layer.weight)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
```

## Use instead
```python
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(128, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
```

## How it is confirmed
The model is built, initialised as the code does it, and run on N(0, 1) inputs with five seeds. The spread of the
output over the batch must be above 100 or not finite, or more than nine tenths of the values of an activation must lie
within 5 % of its range of an asymptote. Then the large layers get the initialiser that fits their activation, and
both must be gone.

## When to ignore it
When the inputs are so small that the large weights make up for them, or weights are loaded over them.

## References
- K. He et al. Delving Deep into Rectifiers. ICCV 2015, arXiv 1502.01852.
- X. Glorot, Y. Bengio. Understanding the difficulty of training deep feedforward neural networks. AISTATS 2010.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gradlint.facts import FileFacts, ModelFacts
from gradlint.facts.chain_help import named
from gradlint.facts.chain_verdict import location_of, model_experiment, traced_views
from gradlint.facts.meanfield import sigma_w2
from gradlint.facts.models import Initialised
from gradlint.facts.vanishing import number, proposes_sigmoid
from gradlint.probe.worker.layergraph import WEIGHT
from gradlint.rule import Candidate, Judgement, Measurement, Rule

REMEDIES = ("he", "xavier", "lecun")
LARGE = 3.0
"""``fan_in`` times variance from which weights may be too large: a tanh gain of 5/3 has 2.8."""
LARGE_STD = 0.3
"""The same for a standard deviation, where the number of inputs is not known."""
MOST_SPREAD, MOST_SATURATED = 100.0, 0.9


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Models in which an explicit initialiser gives some layer large weights."""
    for model in facts.models:
        large = [i for i in _used(model) if _is_large(i)]
        if large and not model.initialised_elsewhere:
            yield _candidate(facts, model, large[0])


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every model with an explicit initialiser."""
    for model in facts.models:
        for one in list(model.initialised)[:1]:
            yield _candidate(facts, model, one)


def _used(model: ModelFacts) -> Iterator[Initialised]:
    """The initialised layers that the forward is seen to use."""
    used = {n.path for n in model.graph.nodes if n.kind == WEIGHT}
    return (i for i in model.initialised if i.path in used)


def _is_large(layer: Initialised) -> bool:
    kind, _, text = layer.init.partition(":")
    gain = sigma_w2(layer.init, layer.fan_in) if kind in ("normal", "gain") else None
    if gain is not None:
        return gain > LARGE
    return kind == "normal" and float(text) >= LARGE_STD


def _candidate(facts: FileFacts, model: ModelFacts, layer: Initialised) -> Candidate:
    path, line = layer.at
    return Candidate(
        code="GL305",
        path=facts.path,
        location=location_of(facts.text, line) if path == model.file else model.location,
        symbol=model.symbol,
        message=f"weights are initialised with {named(layer.init)}, whatever the number of inputs: too large",
        help='use nn.init.kaiming_normal_(weight, nonlinearity="relu"), or xavier_uniform_ for tanh and sigmoid: both\n'
        "take the number of inputs into account",
        group=f"{facts.path}:{model.location.line}",
        experiment=model_experiment(facts.path, model, REMEDIES, ("scale",)),
        facts={
            "made_at": model.made_at,
            "width_known": any(_is_large(i) and i.fan_in is not None for i in _used(model)),
        },
    )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Output or activations past the lines as written, and not with the initialiser that fits."""
    data = measurement.data
    if data is None:
        return Judgement("unverified", measurement.reason, detail=measurement.detail)
    common: dict[str, Any] = {
        "kind": "replica",
        "threshold": {"sigma_out": MOST_SPREAD, "saturated": MOST_SATURATED},
        "assumed": data["assumed"],
    }
    if any(proposes_sigmoid(v) for _, v in traced_views(data)):
        return Judgement("refuted", detail="the sigmoids are the cause: see deep-sigmoid-stack", **common)
    large = [c for c in data["chains"] if _has_large_weights(c)]
    if not large:
        return Judgement("refuted", detail="no weights of the built model are large", **common)
    best = max(large, key=lambda c: (_beyond(c["written"]["start"]), number(c["written"]["start"]["sigma_out"])))
    start = best["written"]["start"]
    common["measured"] = {
        "sigma_out": start["sigma_out"],
        "saturated": start["saturated"],
        "chain": [best["first"], best["last"]],
        "depth": best["depth"],
        "seeds": best["seeds"],
        "trace": data["trace"],
    }
    if not _beyond(start):
        return Judgement("refuted", detail="neither the output nor the activations are past the lines", **common)
    if data["assumed"] and not candidate.facts["width_known"]:
        return Judgement("unverified", "not-built", detail="how many inputs the layers have is not known", **common)
    for chain in large:
        if not _beyond(chain["written"]["start"]):
            continue
        for remedy in REMEDIES:
            after = (chain["after"].get(remedy) or {}).get("start")
            if after is not None and not _beyond(after):
                shown = {"sigma_out": after["sigma_out"], "saturated": after["saturated"], "remedy": remedy}
                return Judgement("confirmed", after_remedy=shown, message=_told(candidate, start), **common)
    return Judgement("refuted", detail="the remedy does not cure: the cause lies elsewhere", **common)


def _told(candidate: Candidate, start: Mapping[str, Any]) -> str:
    spread = number(start["sigma_out"])
    if not start["finite"] or not math.isfinite(spread):
        return f"{candidate.message}: the output is not finite"
    if spread > MOST_SPREAD:
        return f"{candidate.message}: the output has a spread of {spread:.3g} before any training"
    return f"{candidate.message}: {float(start['saturated']):.0%} of an activation's values are saturated"


def _beyond(start: Mapping[str, Any]) -> bool:
    spread = number(start["sigma_out"])
    if not start["finite"] or not math.isfinite(spread):
        return True
    return spread > MOST_SPREAD or float(start["saturated"]) > MOST_SATURATED


def _has_large_weights(chain: Mapping[str, Any]) -> bool:
    """Whether some layer of it has a spread of more than sqrt(3) / sqrt(fan_in): the default has 1 / sqrt(3)."""
    return any(r is not None and float(r) / math.sqrt(3.0) > math.sqrt(LARGE) for r in chain["weight_std_ratio"])


RULE = Rule(
    code="GL305",
    name="oversized-initialization",
    severity="warning",
    proof="risk",
    summary="an explicit initialiser with weights so large that outputs explode or activations saturate",
    check=check,
    judge=judge,
    places=places,
    remedy="model-edit",
)
