"""# default-initialization

## What it does
Finds deep plain chains of weight layers that keep torch's default initialisation, measures how much of the gradient
reaches the first layer, and tries whether the initialiser that fits the activation restores it.

## Why it matters
`nn.Linear` and `nn.Conv2d` draw their weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), a variance of 1 / (3 fan_in).
A ReLU layer needs 2 / fan_in to keep the size of its signal, a tanh layer 1 / fan_in. The difference does no harm in a
shallow net or beside a normalization; in a deep plain chain it is a factor per layer.

## Example
```python
import torch
from torch import nn


class DeepCNN(nn.Module):
    def __init__(self, channels=32, depth=14):
        super().__init__()
        layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.features(x).mean(dim=(2, 3)))


model = DeepCNN()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
```

## Use instead
```python
import torch
from torch import nn


class DeepCNN(nn.Module):
    def __init__(self, channels=32, depth=14):
        super().__init__()
        layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 10)
        self.apply(init_weights)

    def forward(self, x):
        return self.head(self.features(x).mean(dim=(2, 3)))


def init_weights(module):
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


model = DeepCNN()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
```

## How it is confirmed
The model is built and run on N(0, 1) inputs with five seeds. The chain's weights must still have the default spread
(within 5 %), and the gradient must vanish between its ends. Then the chain is initialised for its activation (He for
ReLU and GELU, Xavier for tanh, LeCun for SELU) and measured again; only if that cures is the finding confirmed.

## When to ignore it
When pretrained weights are loaded by code that gradlint cannot see, or a normalization is added instead (see
missing-normalization: either is enough).

## References
- K. He et al. Delving Deep into Rectifiers. ICCV 2015, arXiv 1502.01852.
- X. Glorot, Y. Bengio. Understanding the difficulty of training deep feedforward neural networks. AISTATS 2010.
- pytorch/pytorch#18182, on why the default has not been changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradlint.facts import FileFacts, ModelFacts
from gradlint.facts.chain_help import fitting, initialising
from gradlint.facts.chain_verdict import judge_chains, model_candidates
from gradlint.facts.vanishing import ChainView, may_be_default_stack, predicted_sick, proposes_default
from gradlint.rule import Candidate, Judgement, Measurement, Rule

REMEDIES = ("he", "xavier", "lecun")


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Models with a deep plain chain that no initialiser reaches."""
    return _candidates(facts, lambda v, m: may_be_default_stack(v) and not v.periodic)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every model with a chain at all."""
    return _candidates(facts, lambda v, m: True)


def _candidates(facts: FileFacts, wanted: Any) -> Iterable[Candidate]:
    models = [m for m in facts.models if not m.initialised_elsewhere]
    return model_candidates(models, facts.path, "GL302", REMEDIES, wanted, _describe, _on_paper)


def _owns(v: ChainView) -> bool:
    return proposes_default(v) and not v.periodic


def _on_paper(v: ChainView, model: ModelFacts) -> bool:
    return _owns(v) and predicted_sick(v, model.optimizer)


def _describe(v: ChainView, model: ModelFacts) -> tuple[str, str]:
    return _message(v), initialising(v, fitting(v))


def _message(v: ChainView) -> str:
    return (
        f"{v.depth} weight layers with {v.activation} keep torch's default initialization: "
        "the gradient vanishes on its way to the first"
    )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Sick as written with default weights, healthy with the initialiser that fits the activation."""
    return judge_chains(candidate, measurement, _owns, lambda v: (fitting(v),), _explain)


def _explain(v: ChainView, chain: Mapping[str, Any], remedy: str) -> tuple[str, str]:
    return _message(v), initialising(v, remedy)


RULE = Rule(
    code="GL302",
    name="default-initialization",
    severity="warning",
    proof="risk",
    summary="a deep plain chain whose gradient vanishes and that a fitting initialiser would cure",
    check=check,
    judge=judge,
    places=places,
    remedy="model-edit",
)
