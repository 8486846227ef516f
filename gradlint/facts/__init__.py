"""Facts about source text: names, models, training steps. Plain values; rules read them and walk no tree."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradlint.facts.models import ModelFacts

if TYPE_CHECKING:
    from gradlint.facts.steps import StepFacts

__all__ = ["FileFacts", "ModelFacts"]


@dataclass(frozen=True)
class FileFacts:
    """What is known of one file. ``path`` is as given on the command line; ``module`` its dotted name."""

    path: str
    module: str
    text: str
    tree: ast.Module
    models: tuple[ModelFacts, ...] = ()
    steps: StepFacts | None = None
