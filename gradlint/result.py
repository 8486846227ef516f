"""What one run of the engine gives back, and what that means for the exit status."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

from gradlint.rule import Finding

FailOn = Literal["any", "confirmed"]


@dataclasses.dataclass(frozen=True)
class ProbeInfo:
    """Whether experiments could be run, on which torch, and what confined them.

    ``confinement`` names the mechanisms that held, for example ``("landlock", "seccomp", "rlimit")``.
    ``reason`` is ``None`` or one of :data:`gradlint.rule.REASONS`.
    """

    available: bool
    torch: str | None = None
    confinement: tuple[str, ...] = ()
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Everything one run found.

    ``findings`` holds all of them, also those that are not shown by default (:attr:`Finding.shown`).
    ``files`` is the number of files that were considered. ``notes`` are one-line remarks for stderr.
    ``crashed``: a rule, or gradlint itself, failed somewhere; the findings are what was found all the same.
    """

    findings: tuple[Finding, ...]
    files: int
    probe: ProbeInfo
    probe_seconds: float = 0.0
    refuted: int = 0
    notes: tuple[str, ...] = ()
    crashed: bool = False


class Progress(Protocol):
    """Somebody who wants to know how far a run is."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new stage begins: ``name`` is a word or two, ``total`` the number of steps where it is known."""

    def advance(self, steps: int = 1) -> None:
        """``steps`` more of the current stage are done."""


def listed(result: RunResult, *, show_refuted: bool = False) -> tuple[Finding, ...]:
    """The findings that a report lists, in order of path and place."""
    chosen = [finding for finding in result.findings if show_refuted or finding.shown]
    return tuple(sorted(chosen, key=lambda f: (f.path, f.location, f.code)))


def counts(finding: Finding, fail_on: FailOn) -> bool:
    """Whether ``finding`` makes the exit status 1. Advice never does, and neither does what is not shown."""
    if finding.severity == "advice" or not finding.shown:
        return False
    return fail_on == "any" or finding.judgement.verdict == "confirmed"


def exit_status(findings: Sequence[Finding], *, crashed: bool, fail_on: FailOn, exit_zero: bool) -> int:
    """0: nothing that counts. 1: findings that count. 2: a rule, or gradlint itself, crashed."""
    if crashed:
        return 2
    return int(not exit_zero and any(counts(finding, fail_on) for finding in findings))
