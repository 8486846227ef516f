"""Findings of GL001, GL002 and GL003: about the file, its comments and the rules themselves.

They need no experiment: what is reported is what was seen, so the verdict is ``confirmed`` with static evidence.
"""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Mapping

from gradlint.registry import RuleFailure
from gradlint.rule import Finding, Judgement, Location, Rule
from gradlint.sources.suppress import Unused
from gradlint.sources.text import Problem

SYNTAX_ERROR = "GL001"
UNUSED_SUPPRESSION = "GL002"
RULE_CRASHED = "GL003"

_HELP = {
    SYNTAX_ERROR: "mend the file, or exclude it: nothing in it was checked",
    UNUSED_SUPPRESSION: "remove the comment, or the code from it",
    RULE_CRASHED: "this is a fault of the rule, not of your code: report it, and --ignore the rule until then",
}


def syntax_error(problem: Problem, rules: Mapping[str, Rule]) -> Finding:
    """GL001 for a file that mentions torch and could not be read."""
    place = Location(problem.line, problem.column, problem.line, problem.column + 1)
    return _finding(SYNTAX_ERROR, problem.path, place, problem.message, rules)


def unused_suppression(path: str, unused: Unused, rules: Mapping[str, Rule]) -> Finding:
    """GL002 for a comment that silences nothing."""
    return _finding(UNUSED_SUPPRESSION, path, unused.location, unused.message, rules)


@dataclasses.dataclass(frozen=True)
class Crash:
    """A rule, or a reader of facts, that raised on a file: which one, and the exception in one line."""

    path: str
    what: str
    error: str


def crash_of(path: str, what: str, error: BaseException) -> Crash:
    """The crash of ``what`` on ``path``, with the innermost place in gradlint's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:200]
    return Crash(path, what, f"{type(error).__name__}{': ' + text if text else ''}{where}")


def crashed(crash: Crash, rules: Mapping[str, Rule]) -> Finding:
    """GL003 for a rule that raised while it read a file."""
    message = f"{crash.what} crashed on this file: {crash.error}"
    return _finding(RULE_CRASHED, crash.path, Location(1, 1, 1, 2), message, rules)


def rule_not_loaded(failure: RuleFailure, rules: Mapping[str, Rule]) -> Finding:
    """GL003 for a rule file that could not be loaded."""
    place = Location(failure.line, 1, failure.line, 2)
    return _finding(RULE_CRASHED, failure.path, place, f"the rule file cannot be used: {failure.message}", rules)


def _finding(code: str, path: str, location: Location, message: str, rules: Mapping[str, Rule]) -> Finding:
    rule = rules[code]
    return Finding(
        path=path,
        location=location,
        symbol="",
        code=code,
        name=rule.name,
        severity=rule.severity,
        message=message,
        group=f"{path}:{location.line}:{code}",
        judgement=Judgement("confirmed", kind="static"),
        proof=rule.proof,
        help=_HELP[code],
    )
