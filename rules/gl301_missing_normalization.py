"""# missing-normalization

## What it does
Finds deep chains of weight layers without any normalization and without residual connections, measures how much of
the gradient reaches the first layer, and tries whether a normalization restores it.

## Why it matters
With torch's default initialisation the signal of a plain ReLU chain loses more than half of its size in every layer,
and so does the gradient on its way back. Twelve layers deep the first layer receives a thousandth of what the last one
receives, and the output hardly depends on the input. A normalization after each layer undoes the loss layer by layer.

## Example
```python
import torch
from torch import nn


class DeepNet(nn.Module):
    def __init__(self, width=64, depth=16):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)


model = DeepNet()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
```

## Use instead
```python
import torch
from torch import nn


class DeepNet(nn.Module):
    def __init__(self, width=64, depth=16):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for layer, norm in zip(self.hidden, self.norms):
            x = torch.relu(norm(layer(x)))
        return self.head(x)


model = DeepNet()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
```

## How it is confirmed
The model is built and run on N(0, 1) inputs with five seeds, and the gradients of the first and the last hidden layer
of the chain are compared. Then a BatchNorm is put after each weight layer of the chain but the last and the numbers are
measured again; where that does not cure, LayerNorm (GroupNorm for convolutions) is tried and the evidence names it.
A chain most of whose layers have weight or spectral normalization is not measured: their scale is a parameter.

## When to ignore it
When an initialiser is added instead (see default-initialization: either is enough), or the batch is too small for
BatchNorm and residual connections are preferred.

## References
- S. Ioffe, C. Szegedy. Batch Normalization. ICML 2015, arXiv 1502.03167.
- S. Schoenholz et al. Deep Information Propagation. ICLR 2017, arXiv 1611.01232.
- G. Yang et al. A Mean Field Theory of Batch Normalization. ICLR 2019, arXiv 1902.08129.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradlint.facts import FileFacts, ModelFacts
from gradlint.facts.chain_verdict import judge_chains, model_candidates
from gradlint.facts.vanishing import (
    LOW_DIMENSIONAL_INPUT,
    ChainView,
    may_be_default_stack,
    predicted_sick,
    proposes_default,
)
from gradlint.rule import Candidate, Judgement, Measurement, Rule

REMEDIES = ("batch_norm", "layer_norm")


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Models with a deep default-initialised chain that holds no normalization."""
    return _candidates(facts, lambda v, m: may_be_default_stack(v) and v.norm_links == 0)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every model with a chain at all."""
    return _candidates(facts, lambda v, m: True)


def _candidates(facts: FileFacts, wanted: Any) -> Iterable[Candidate]:
    return model_candidates(
        [m for m in facts.models if not m.initialised_elsewhere],
        facts.path,
        "GL301",
        REMEDIES,
        lambda v, m: wanted(v, m) and not _smooth_on_purpose(v, m),
        _describe,
        _on_paper,
    )


def _owns(v: ChainView) -> bool:
    return proposes_default(v) and v.norm_links == 0 and not v.periodic


def _smooth_on_purpose(v: ChainView, model: ModelFacts) -> bool:
    low = v.input_features is not None and v.input_features <= LOW_DIMENSIONAL_INPUT
    return v.periodic or (low and model.derivatives_taken)


def _on_paper(v: ChainView, model: ModelFacts) -> bool:
    return _owns(v) and predicted_sick(v, model.optimizer)


def _describe(v: ChainView, model: ModelFacts) -> tuple[str, str]:
    return _message(v), _help(v, "batch_norm")


def _message(v: ChainView) -> str:
    return (
        f"{v.depth} weight layers with {v.activation} and no normalization: "
        "the gradient vanishes on its way to the first"
    )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Sick as written, healthy with a normalization after each layer of the chain but the last."""
    return judge_chains(candidate, measurement, _owns, lambda v: REMEDIES, _explain)


def _explain(v: ChainView, chain: Mapping[str, Any], remedy: str) -> tuple[str, str]:
    return _message(v), _help(v, remedy)


_NORMS = {
    "linear": ("nn.Linear", "nn.BatchNorm1d(out_features)", "nn.LayerNorm(out_features)"),
    "conv1d": ("nn.Conv1d", "nn.BatchNorm1d(out_channels)", "nn.GroupNorm(1, out_channels)"),
    "conv2d": ("nn.Conv2d", "nn.BatchNorm2d(out_channels)", "nn.GroupNorm(1, out_channels)"),
    "conv3d": ("nn.Conv3d", "nn.BatchNorm3d(out_channels)", "nn.GroupNorm(1, out_channels)"),
    "conv_transpose1d": ("nn.ConvTranspose1d", "nn.BatchNorm1d(out_channels)", "nn.GroupNorm(1, out_channels)"),
    "conv_transpose2d": ("nn.ConvTranspose2d", "nn.BatchNorm2d(out_channels)", "nn.GroupNorm(1, out_channels)"),
    "conv_transpose3d": ("nn.ConvTranspose3d", "nn.BatchNorm3d(out_channels)", "nn.GroupNorm(1, out_channels)"),
}


def _help(v: ChainView, remedy: str) -> str:
    rows = [_NORMS[op] for op in sorted(v.ops) if op in _NORMS] or [_NORMS["linear"]]
    calls = [f"{batch if remedy == 'batch_norm' else layer} after each {name}" for name, batch, layer in rows]
    return (
        f"add {' and '.join(calls)} of the chain but the last, before its activation;\n"
        "residual connections, or an initialiser that fits the activation (GL302), serve as well: one of them is enough"
    )


RULE = Rule(
    code="GL301",
    name="missing-normalization",
    severity="warning",
    proof="risk",
    summary="a deep plain chain whose gradient vanishes and that a normalization would cure",
    check=check,
    judge=judge,
    places=places,
    remedy="model-edit",
)
