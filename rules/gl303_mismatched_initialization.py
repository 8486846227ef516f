"""# mismatched-initialization

## What it does
Finds an explicit initialiser whose weights are too small, or otherwise of the wrong size, for the activation and the
depth of the layers it reaches, so that the gradient vanishes on its way to the first of them.

## Why it matters
A layer keeps the size of what passes through it only if the variance of its weights is matched to its activation:
2 / fan_in for ReLU (He), 1 / fan_in for tanh (Xavier). `normal_(std=0.01)` on layers of 64 inputs is a fiftieth of
that, in each layer: after a dozen of them neither the input nor the gradient is left. Xavier on thirty ReLU layers
loses half of the variance in each. Training starts on a plateau that SGD does not leave.

## Example
```python
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        layers = []
        for _ in range(11):
            layers += [nn.Linear(width, width), nn.ReLU()]
        layers.append(nn.Linear(width, 10))
        self.body = nn.Sequential(*layers)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.01)
                nn.init.zeros_(m.bias)

    def forward(self, x):
        return self.body(x)


model = Encoder()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
```

## Use instead
```python
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        layers = []
        for _ in range(11):
            layers += [nn.Linear(width, width), nn.ReLU()]
        layers.append(nn.Linear(width, 10))
        self.body = nn.Sequential(*layers)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)

    def forward(self, x):
        return self.body(x)


model = Encoder()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
```

## How it is confirmed
The model is built, initialised as the code does it, and run on N(0, 1) inputs with five seeds. The gradient must vanish
between the ends of the chain; then the chain gets the initialiser that fits its activation (He for ReLU and GELU,
Xavier for tanh, LeCun for SELU) and is measured again. Only if that cures is the finding confirmed.

## When to ignore it
When weights are loaded over it by code that gradlint cannot see, or the small start is wanted (a network that is to
begin as a small perturbation).

## References
- K. He et al. Delving Deep into Rectifiers. ICCV 2015, arXiv 1502.01852.
- X. Glorot, Y. Bengio. Understanding the difficulty of training deep feedforward neural networks. AISTATS 2010.
- S. Schoenholz et al. Deep Information Propagation. ICLR 2017, arXiv 1611.01232.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gradlint.facts import FileFacts, ModelFacts
from gradlint.facts.chain_help import fitting, initialising, named
from gradlint.facts.chain_verdict import judge_chains, location_of, model_candidates
from gradlint.facts.vanishing import ChainView, may_be_misfit, predicted_sick, proposes_misfit
from gradlint.rule import Candidate, Judgement, Location, Measurement, Rule

REMEDIES = ("he", "xavier", "lecun")


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Models with a chain whose explicit initialiser does not fit its activation."""
    return _candidates(facts, lambda v, m: may_be_misfit(v))


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every model with a chain at all."""
    return _candidates(facts, lambda v, m: True)


def _candidates(facts: FileFacts, wanted: Any) -> Iterable[Candidate]:
    def place(v: ChainView, model: ModelFacts) -> Location | None:
        if v.misfit_at is None or v.misfit_at[0] != model.file:
            return None
        return location_of(facts.text, v.misfit_at[1])

    models = [m for m in facts.models if not m.initialised_elsewhere]
    return model_candidates(models, facts.path, "GL303", REMEDIES, wanted, _describe, _on_paper, place)


def _on_paper(v: ChainView, model: ModelFacts) -> bool:
    return proposes_misfit(v) and predicted_sick(v, model.optimizer)


def _describe(v: ChainView, model: ModelFacts) -> tuple[str, str]:
    return _message(v), initialising(v, fitting(v))


def _message(v: ChainView) -> str:
    written = f" with {named(v.misfits[0])}" if v.misfits else ""
    return (
        f"{v.depth} weight layers with {v.activation} are initialised{written}, which does not fit {v.activation}: "
        "the gradient vanishes on its way to the first"
    )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Sick as written, with weights that do not fit; healthy with the initialiser that fits the activation."""
    judgement = judge_chains(candidate, measurement, proposes_misfit, lambda v: (fitting(v),), _explain)
    counted = candidate.message.partition(" are initialised")[0]
    if judgement.message is not None and judgement.message.startswith(f"{counted} "):
        return dataclasses.replace(judgement, message=None)  # the text names the initialiser as it is written
    return judgement


def _explain(v: ChainView, chain: Mapping[str, Any], remedy: str) -> tuple[str, str]:
    return _message(v), initialising(v, remedy)


RULE = Rule(
    code="GL303",
    name="mismatched-initialization",
    severity="warning",
    proof="risk",
    summary="an explicit initialiser that does not fit the activation of a deep plain chain",
    check=check,
    judge=judge,
    places=places,
    remedy="model-edit",
)
