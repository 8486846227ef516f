"""The report for programs: one JSON document, version 1."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradlint.result import RunResult
from gradlint.rule import Finding, Fix, Judgement

VERSION = 1


def render(findings: Sequence[Finding], result: RunResult) -> str:
    """The document, with a line end. Numbers that are not finite become the strings ``inf``, ``-inf``, ``nan``."""
    verdicts = [finding.judgement.verdict for finding in findings]
    document = {
        "version": VERSION,
        "findings": [_finding(finding) for finding in findings],
        "summary": {
            "files": result.files,
            "confirmed": verdicts.count("confirmed"),
            "unverified": verdicts.count("unverified"),
            "refuted": result.refuted,
            "probe_seconds": round(result.probe_seconds, 3),
        },
        "probe": {
            "available": result.probe.available,
            "torch": result.probe.torch,
            "confinement": list(result.probe.confinement),
            "reason": result.probe.reason,
        },
    }
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """``value`` as JSON can say it: containers copied, what is not finite as text, the rest by its ``str``."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(entry) for entry in value]
    return str(value)


def _finding(finding: Finding) -> dict[str, Any]:
    place, judgement = finding.location, finding.judgement
    return {
        "path": finding.path,
        "line": place.line,
        "column": place.column,
        "end_line": place.end_line,
        "end_column": place.end_column,
        "symbol": finding.symbol,
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "message": judgement.message or finding.message,
        "group": finding.group,
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "evidence": _evidence(judgement),
        "fix": _fix(finding.fix),
        "related": [{"path": r.path, "line": r.line, "message": r.message} for r in finding.related],
    }


def _evidence(judgement: Judgement) -> dict[str, Any]:
    return {
        "kind": judgement.kind,
        "measured": judgement.measured,
        "after_remedy": judgement.after_remedy,
        "threshold": judgement.threshold,
        "assumed": judgement.assumed,
    }


def _fix(fix: Fix | None) -> dict[str, Any] | None:
    if fix is None:
        return None
    edits = [
        {
            "line": edit.line,
            "column": edit.column,
            "end_line": edit.end_line,
            "end_column": edit.end_column,
            "content": edit.content,
        }
        for edit in fix.edits
    ]
    return {"applicability": fix.applicability, "edits": edits}
