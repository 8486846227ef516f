"""Fixes written to files: encoding, byte order mark and line ends stay as they are, a file is replaced whole.

The edits themselves come with the findings; :mod:`gradlint.fix` applies them to text.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from gradlint.fix import apply_fixes, lines_of
from gradlint.rule import Finding
from gradlint.sources.text import SourceFile, decode


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """One file with its fixes: the bytes before and after, and the findings whose fix was applied."""

    path: str
    before: bytes
    after: bytes
    encoding: str
    applied: tuple[Finding, ...]


def fixable(findings: Iterable[Finding], *, unsafe: bool) -> dict[str, list[Finding]]:
    """The findings whose fix may be applied, by path. ``unsafe``: also those that may change what code means."""
    chosen: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.fix is not None and (unsafe or finding.fix.applicability == "safe"):
            chosen.setdefault(finding.path, []).append(finding)
    return chosen


def rewrite(path: str, data: bytes, findings: Sequence[Finding]) -> Rewritten | None:
    """``data`` with the fixes of ``findings``; of two that touch the same lines the later one waits for its turn.

    ``None`` if nothing could be applied. Raises ``ValueError`` if the edits do not fit the text.
    """
    source = decode(path, data)
    if not isinstance(source, SourceFile):
        return None
    fixes = [finding.fix.edits for finding in findings if finding.fix is not None]
    text, applied = apply_fixes(source.text, fixes)
    if text == source.text:
        return None
    after = _with_line_ends(data.decode(source.encoding), text, source.newline).encode(source.encoding)
    return Rewritten(path, data, after, source.encoding, tuple(findings[index] for index in applied))


def write(rewritten: Rewritten) -> None:
    """Replace the file in one step, so that a crash leaves the old text or the new one. Raises ``OSError``."""
    target = os.path.realpath(rewritten.path)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".gradlint-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(rewritten.after)
        shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError:
        os.unlink(temporary)
        raise


def diff(rewritten: Rewritten) -> Iterator[str]:
    """The lines of a unified diff, each with its line end."""
    before = rewritten.before.decode(rewritten.encoding)
    after = rewritten.after.decode(rewritten.encoding)
    for line in difflib.unified_diff(lines_of(before), lines_of(after), rewritten.path, rewritten.path):
        yield line if line.endswith(("\n", "\r")) else f"{line}\n\\ No newline at end of file\n"


def _with_line_ends(before: str, text: str, newline: str) -> str:
    """``text`` (line ends ``\\n``) with the line ends of ``before``: each line its own, new ones the usual one."""
    if "\r" not in before:
        return text
    raw = lines_of(before)
    ends = [line[len(line.rstrip("\r\n")) :] for line in raw]
    old = [line.rstrip("\r\n") for line in raw]
    new = text.split("\n")
    chosen = [newline] * len(new)
    for tag, i1, i2, j1, _ in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            for offset in range(i2 - i1):
                chosen[j1 + offset] = ends[i1 + offset] or newline
    return "".join(line + end for line, end in zip(new[:-1], chosen, strict=False)) + new[-1]
