"""The report for people: place, source, what is wrong, the numbers, what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from gradlint.report.excerpt import excerpt
from gradlint.report.style import Style, visible, visible_lines
from gradlint.report.words import measured_line, reason_lines
from gradlint.result import RunResult
from gradlint.rule import Finding, Location
from gradlint.sources.suppress import last_line

Lines = Callable[[str], Sequence[str]]
"""The lines of the file at a path, empty where it cannot be read."""


def render(findings: Sequence[Finding], result: RunResult, lines: Lines, style: Style) -> str:
    """The whole report: a block for each group of findings, then the summary line."""
    blocks = ["\n".join(_block(group, lines, style)) + "\n" for group in _groups(findings)]
    return "\n".join([*blocks, summary(findings, result) + "\n"])


def summary(findings: Sequence[Finding], result: RunResult) -> str:
    """One line: how many problems of which verdict, in how many files, at which cost."""
    verdicts = Counter(finding.judgement.verdict for finding in findings)
    problems = len(findings) - verdicts["refuted"]
    counted = ", ".join(f"{verdicts[name]} {name}" for name in ("confirmed", "unverified") if verdicts[name])
    said = f"Found {_plural(problems, 'problem')} ({counted})" if problems else "No problems found"
    tail = f"; {result.probe_seconds:.1f} s of probing" if result.probe_seconds > 0 else ""
    return f"{said} in {_plural(result.files, 'file')}{tail}."


def statistics(findings: Sequence[Finding]) -> str:
    """How often each rule was reported, most frequent first."""
    counted = Counter((f.code, f.name) for f in findings if f.judgement.verdict != "refuted")
    rows = sorted(counted.items(), key=lambda row: (-row[1], row[0]))
    digits = max((len(str(count)) for _, count in rows), default=0)
    return "".join(f"{count:>{digits}}  {code}  {name}\n" for (code, name), count in rows)


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for index, finding in enumerate(findings):
        groups.setdefault(finding.group or f"#{index}", []).append(finding)
    return list(groups.values())


def _block(group: Sequence[Finding], lines: Lines, style: Style) -> list[str]:
    out = [_header(finding, style) for finding in group]
    shown: dict[Location, None] = {finding.location: None for finding in group}
    for location in shown:
        out += excerpt(lines(group[0].path), location, style)
    gutter = max(len(str(last_line(finding.location))) for finding in group) + 1
    for finding in group:
        out += _body(finding, style, gutter, name_it=len(group) > 1)
    return out


def _header(finding: Finding, style: Style) -> str:
    place = f"{visible(finding.path)}:{finding.location.line}:{finding.location.column}:"
    verdict = finding.judgement.verdict
    paint = {"confirmed": style.red, "unverified": style.yellow, "refuted": style.dim}[verdict]
    return f"{style.bold(place)} {style.bold(finding.code)} {finding.name} {paint(f'[{verdict}]')}"


def _body(finding: Finding, style: Style, gutter: int, *, name_it: bool) -> list[str]:
    """What is wrong and all that is known about it, under a sign that is aligned with the excerpt's bar."""
    judgement = finding.judgement
    indent = " " * gutter + style.cyan("=") + " "
    inner = indent + "  " if name_it else indent
    out = _item(indent, f"{finding.code}:" if name_it else "", judgement.message or finding.message, style)
    for label, text in _details(finding):
        out += _item(inner, label, text, style)
    return out


def _details(finding: Finding) -> Iterator[tuple[str, str]]:
    judgement = finding.judgement
    yield "measured:", measured_line(judgement)
    yield "assumed:", ", ".join(f"{name} = {value}" for name, value in judgement.assumed.items())
    if judgement.verdict == "unverified":
        reason, advice = reason_lines(judgement)
        yield "not confirmed:", reason
        yield "to have it run:", advice
    for related in finding.related:
        place = f"line {related.line}" if related.path == finding.path else f"{related.path}:{related.line}"
        yield f"{visible(place)}:", related.message
    if judgement.verdict == "refuted":
        yield "refuted:", judgement.detail
        return
    yield "help:", judgement.help or finding.help
    if finding.fix is not None:
        option = "--fix" if finding.fix.applicability == "safe" else "--fix --unsafe-fixes"
        yield "fix:", f"{finding.fix.description or 'available'}, with {option}"


def _item(indent: str, label: str, text: str, style: Style) -> list[str]:
    """A labelled paragraph; further lines (code to write, mostly) are indented under it."""
    if not text:
        return []
    first, *rest = visible_lines(text.strip("\n"))
    return [f"{indent}{style.bold(label) + ' ' if label else ''}{first}", *(f"      {line}".rstrip() for line in rest)]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
