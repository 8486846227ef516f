"""# deep-sigmoid-stack

## What it does
Finds chains of four or more weight layers with a sigmoid between them (six or more where a LayerNorm stands
between), and measures how much of the gradient reaches the first of them.

## Why it matters
The slope of a sigmoid is at most 1/4, so every hidden sigmoid layer divides the gradient by four or more, whatever
the usual initialiser. Six layers deep, the first layer receives less than a thousandth of what the last one
receives: it does not learn, and nothing raises an error.

## Example
```python
import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        layers = [nn.Linear(20, width), nn.Sigmoid()]
        for _ in range(6):
            layers += [nn.Linear(width, width), nn.Sigmoid()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
```

## Use instead
```python
import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        layers = [nn.Linear(20, width), nn.ReLU()]
        for _ in range(6):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x):
        return self.head(self.body(x))


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
```

## How it is confirmed
The model is built and run on N(0, 1) inputs with five seeds; the gradient norms of the first and the last hidden
layer of the chain, each divided by sqrt(fan_in), are compared. Then the chain's sigmoids become ReLU and its weights
get He initialisation, and the same numbers are measured again. The finding is confirmed if the chain is sick as
written (ratio below 1e-2; below 1e-3 where the file trains with an Adam-like optimizer) and healthy after.

## When to ignore it
When the layers are meant to stay as they are initialised (a fixed random feature map), or a published result has to
be reproduced. BatchNorm between the layers also restores the gradient; gradlint is silent on such chains.

## References
- X. Glorot, Y. Bengio. Understanding the difficulty of training deep feedforward neural networks. AISTATS 2010.
- S. Schoenholz et al. Deep Information Propagation. ICLR 2017, arXiv 1611.01232.
- K. He et al. Delving Deep into Rectifiers. ICCV 2015, arXiv 1502.01852.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradlint.facts import FileFacts, ModelFacts
from gradlint.facts.chain_verdict import judge_chains, model_candidates
from gradlint.facts.vanishing import ChainView, may_be_sigmoid_stack, predicted_sick, proposes_sigmoid
from gradlint.rule import Candidate, Judgement, Measurement, Rule

REMEDIES = ("relu_he",)


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Models with a chain that is deep enough in sigmoids."""
    return _candidates(facts, lambda v, m: may_be_sigmoid_stack(v))


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every model with a chain at all."""
    return _candidates(facts, lambda v, m: True)


def _candidates(facts: FileFacts, wanted: Any) -> Iterable[Candidate]:
    return model_candidates(facts.models, facts.path, "GL201", REMEDIES, wanted, _describe, _on_paper)


def _on_paper(v: ChainView, model: ModelFacts) -> bool:
    return proposes_sigmoid(v) and predicted_sick(v, model.optimizer)


def _describe(v: ChainView, model: ModelFacts) -> tuple[str, str]:
    message = f"{v.depth} weight layers with {v.activation} between them: the gradient vanishes on its way to the first"
    return message, _HELP


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Sick as written, healthy with ReLU and He initialisation."""
    return judge_chains(candidate, measurement, proposes_sigmoid, lambda v: REMEDIES, _explain)


def _explain(v: ChainView, chain: Mapping[str, Any], remedy: str) -> tuple[str, str]:
    message = f"{v.depth} weight layers with {v.activation} between them: the gradient vanishes on its way to the first"
    return message, _HELP


_HELP = """\
replace the hidden sigmoids by nn.ReLU() and initialise the layers for it:
    for m in self.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
or, to keep the sigmoids, put a BatchNorm between each layer and its sigmoid"""

RULE = Rule(
    code="GL201",
    name="deep-sigmoid-stack",
    severity="warning",
    proof="risk",
    summary="a chain of sigmoid layers so deep that the gradient does not reach its first layer",
    check=check,
    judge=judge,
    places=places,
    remedy="model-edit",
)
