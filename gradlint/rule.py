"""What a rule is, and the values that travel between the stages.

A rule file in ``rules/`` makes one :class:`Rule` and names it ``RULE``. Its module docstring is its page.

Two passes. ``check`` reads static facts and proposes :class:`Candidate` values, liberally.
``judge`` reads one candidate and the :class:`Measurement` of its experiment and gives a
:class:`Judgement`, strictly. Both are pure functions; neither walks a syntax tree or prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gradlint.facts import FileFacts

Severity = Literal["error", "warning", "advice"]
Proof = Literal["exact", "risk", "static"]
VerdictName = Literal["confirmed", "refuted", "unverified"]

REASONS = (
    "no-torch",
    "torch-too-old",
    "probe-off",
    "vetoed",
    "not-sliced",
    "not-built",
    "not-traced",
    "no-gradient",
    "timeout",
    "memory",
    "worker-died",
    "budget",
    "tampered",
    "inconclusive",
)
"""The closed list of reasons an ``unverified`` verdict may carry."""


@dataclasses.dataclass(frozen=True, order=True)
class Location:
    """A span of source text. Lines and columns count from 1, columns in characters; the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclasses.dataclass(frozen=True)
class Related:
    """A second place that helps to understand a finding."""

    path: str
    line: int
    message: str


@dataclasses.dataclass(frozen=True)
class SourceEdit:
    """The whole text of a file after a remedy, and whether applying it can change anything but the fault.

    ``--fix`` applies the very text that the probe ran, so a fix is only offered after it was seen to work.
    ``line_map`` maps a line of the edited text to its line in the original, for lines that survive.
    """

    new_text: str
    applicability: Literal["safe", "unsafe"]
    description: str
    line_map: Mapping[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelExperiment:
    """Build a module, measure the gradients along its chains, again after each remedy.

    ``qualname`` names a class (``kind="class"``), a function that returns a module (``"function"``),
    or a variable bound by module-level statements, or by the statements of the function
    ``scope`` (``"variable"``).
    """

    path: str
    kind: Literal["class", "function", "variable"]
    qualname: str
    scope: str | None
    remedies: tuple[str, ...]
    line: int
    initialisers: tuple[tuple[str, str, str], ...] = ()
    """Functions outside of the model that initialise it, with how (``apply``, ``call`` or ``method``) and the file in
    which they have this name (empty: ``path``)."""
    measures: tuple[str, ...] = ()
    """What is measured beside the chains: ``symmetry`` of constant weights, ``scale`` of the whole model."""


@dataclasses.dataclass(frozen=True)
class StepExperiment:
    """Run the user's own training statements on recorders; again on the edited source.

    ``region`` is the qualified name of the function or method at which execution starts
    (``""``: the module's own statements). ``lines`` are the lines of the calls the rule speaks of.
    """

    path: str
    region: str
    lines: tuple[int, ...]
    edit: SourceEdit | None
    edited_lines: tuple[int, ...] = ()
    same_batch: bool = False
    """Run every iteration on one batch with a learning rate of 0, and let clips record but not clip."""
    accumulation: int = 1
    """Run with so many micro-batches where their count is an option that is 1 by default."""
    overflow: bool = False
    """Let the first backward of a scaled loss overflow, as half precision does."""
    remedy: Literal["", "clip-at-step", "clear-after-step"] = ""
    """What the run does otherwise where no edit can be written; it is told, and never a ``--fix``."""
    watched: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The line of the call that the remedy is for, and its module (empty: that of ``path``)."""
    fallbacks: tuple[str, ...] = ()
    """Functions to start in where the calls are not reached from ``region``."""
    edit_path: str = ""
    """The file that the edit changes, if that is not ``path``."""
    iterators: tuple[tuple[int, str, str], ...] = ()
    """The line and the name of iterators whose consumers are to be recorded, and their module (empty: ``path``'s)."""


Experiment = ModelExperiment | StepExperiment


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A place where a rule suspects a fault, and the experiment that can contradict it."""

    code: str
    path: str
    location: Location
    symbol: str
    message: str
    experiment: Experiment | None = None
    help: str = ""
    group: str = ""
    related: tuple[Related, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Plain data the rule's ``judge`` needs again."""
    predicted_sick: bool = False
    """Risk rules: the prediction on paper (mean field) is already past the confirmed line."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What came back from one experiment: plain data, or the reason there is none."""

    data: Mapping[str, Any] | None
    reason: str | None = None
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A rule's verdict on one candidate, with the numbers behind it."""

    verdict: VerdictName
    reason: str | None = None
    kind: Literal["replica", "replay", "static"] = "static"
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    after_remedy: Mapping[str, Any] | None = None
    threshold: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    assumed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    detail: str = ""
    """Why it is unverified or refuted, in words: what would make it runnable."""
    help: str | None = None
    """Replaces the candidate's help when the measurement knows better."""
    message: str | None = None


@dataclasses.dataclass(frozen=True)
class Edit:
    """One replacement in a source text; the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int
    content: str


@dataclasses.dataclass(frozen=True)
class Fix:
    """A remedy that was seen to cure, as edits to the file as it stands."""

    applicability: Literal["safe", "unsafe"]
    description: str
    edits: tuple[Edit, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is reported: one candidate with its verdict."""

    path: str
    location: Location
    symbol: str
    code: str
    name: str
    severity: Severity
    message: str
    group: str
    judgement: Judgement
    proof: Proof = "exact"
    help: str = ""
    fix: Fix | None = None
    related: tuple[Related, ...] = ()
    predicted_sick: bool = False

    @property
    def shown(self) -> bool:
        """Whether the finding is reported without ``--show-refuted`` (DESIGN: table of verdicts)."""
        if self.judgement.verdict == "confirmed":
            return True
        if self.judgement.verdict == "refuted" or self.judgement.reason == "inconclusive":
            return False
        return self.proof != "risk" or self.predicted_sick


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule. ``places`` lists every spot the rule could speak of; ``check`` those it suspects.

    ``places`` exists for the negative control of the meta-test: right code, handed to the probe past
    ``check``, must come back ``refuted``.
    """

    code: str
    name: str
    severity: Severity
    proof: Proof
    summary: str
    check: Callable[[FileFacts], Iterable[Candidate]]
    judge: Callable[[Candidate, Measurement], Judgement]
    places: Callable[[FileFacts], Iterable[Candidate]]
    remedy: str
    """``"source-edit"``, ``"model-edit"``, or the reason why none is needed."""
    page: str = ""
    """The docstring of the rule file; filled in by the loader."""
