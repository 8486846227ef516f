"""``gradlint check``: the options checked, the engine run, fixes applied, the report written."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from gradlint import config, registry, rewrite
from gradlint.config import Options, Settings
from gradlint.errors import UsageProblem
from gradlint.report.style import Style, visible, wants_colour
from gradlint.result import FailOn, RunResult, exit_status, listed
from gradlint.rule import Finding
from gradlint.sources.text import SourceFile, decode, read

STDIN = "-"
MAX_ROUNDS = 10
"""A fix may uncover another finding; more rounds than this would mean that two fixes undo each other."""

CRASHED = 2


@dataclasses.dataclass(frozen=True)
class Request:
    """The command line of ``gradlint check``, as click gives it."""

    paths: tuple[str, ...]
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    form: str = "text"
    output: str | None = None
    fail_on: FailOn | None = None
    exit_zero: bool = False
    statistics: bool = False
    show_refuted: bool = False
    fix: bool = False
    unsafe_fixes: bool = False
    diff: bool = False
    probe: bool | None = None
    probe_timeout: float | None = None
    probe_budget: float | None = None
    python: str | None = None
    trust_project: bool = False
    stdin_filename: str | None = None
    jobs: int | None = None
    no_cache: bool = False


def check(request: Request) -> int:
    """Run it and give the exit status. Raises :class:`UsageProblem` before any work."""
    _check_usage(request)
    settings = settle(request)
    stdin = (request.stdin_filename or "<stdin>", sys.stdin.buffer.read()) if STDIN in request.paths else None
    run = _runner(request, settings)
    result, stdin, failed = _fixed(request, run, stdin) if request.fix and not request.diff else (run(stdin), stdin, [])
    _say([*result.notes, *failed])
    findings = listed(result, show_refuted=request.show_refuted)
    report_to: TextIO = sys.stdout
    if request.diff:
        _print_diff(findings, request, stdin)
        report_to = sys.stderr
    elif request.fix and stdin is not None:
        sys.stdout.buffer.write(stdin[1])
        sys.stdout.buffer.flush()
        report_to = sys.stderr
    if not request.diff or request.output:
        _write_report(findings, result, request, stdin, report_to)
    crashed = result.crashed or bool(failed)
    return exit_status(findings, crashed=crashed, fail_on=settings.fail_on, exit_zero=request.exit_zero)


def settle(request: Request) -> Settings:
    """The settings of a run, with every selector and path in them checked. Raises :class:`UsageProblem`."""
    around = [request.stdin_filename or os.curdir] if STDIN in request.paths else request.paths or (os.curdir,)
    sources = config.read_all(around, trust_project=request.trust_project)
    config.check_rule_paths(sources.rules)
    options = Options(
        select=request.select or None,
        ignore=request.ignore,
        extend_select=request.extend_select,
        python=request.python,
        trust_project=request.trust_project,
        fail_on=request.fail_on,
        probe=request.probe,
        probe_timeout=request.probe_timeout,
        probe_budget=request.probe_budget,
        jobs=request.jobs,
        cache=not request.no_cache,
        show_refuted=request.show_refuted,
    )
    return config.settle(sources, options, registry.load(sources.rules))


def _check_usage(request: Request) -> None:
    if STDIN in request.paths and len(request.paths) > 1:
        raise UsageProblem("`-` reads stdin and cannot be mixed with other paths: lint them in two runs")
    if request.stdin_filename is not None and STDIN not in request.paths:
        raise UsageProblem("--stdin-filename names what is read from stdin: give `-` as the path")
    if request.unsafe_fixes and not (request.fix or request.diff):
        raise UsageProblem("--unsafe-fixes says which fixes to apply: give --fix or --diff too")
    for path in request.paths:
        if path != STDIN:
            _check_path(path)
    if request.output is not None:
        folder = os.path.dirname(request.output) or os.curdir
        if os.path.isdir(request.output) or not os.path.isdir(folder):
            raise UsageProblem(f"--output: {request.output} cannot be written: give a file in a folder that exists")


def _check_path(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        raise UsageProblem(f"{path}: no such file or folder: check the path") from None
    except (OSError, ValueError) as error:
        raise UsageProblem(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    wanted = os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK
    if not os.access(path, wanted):
        raise UsageProblem(f"{path}: cannot be read: permission denied: change its mode, or leave it out")


Stdin = tuple[str, bytes]
Runner = Callable[[Stdin | None], RunResult]


def _runner(request: Request, settings: Settings) -> Runner:
    from gradlint import engine
    from gradlint.report.progress import TerminalProgress

    paths = () if STDIN in request.paths else request.paths or (os.curdir,)

    def run(stdin: Stdin | None) -> RunResult:
        progress = TerminalProgress(sys.stderr)
        try:
            return engine.run(paths, settings, stdin=stdin, progress=progress)
        finally:
            progress.close()

    return run


def _fixed(request: Request, run: Runner, stdin: Stdin | None) -> tuple[RunResult, Stdin | None, list[str]]:
    """Run and fix until nothing is left to fix. The result is that of the code as it is afterwards."""
    result = run(stdin)
    for _ in range(MAX_ROUNDS):
        changed = _rewritten(listed(result), request, stdin)
        failed = []
        for rewritten in changed:
            if stdin is not None:
                stdin = (stdin[0], rewritten.after)
                continue
            try:
                rewrite.write(rewritten)
            except OSError as error:
                failed.append(f"{rewritten.path}: the fix cannot be written: {error.strerror or error}")
        if not changed or failed:
            return result, stdin, failed
        _say([f"fixed {r.path}:{f.location.line}: {f.code} {f.name}" for r in changed for f in r.applied])
        result = run(stdin)
    return result, stdin, []


def _rewritten(findings: Sequence[Finding], request: Request, stdin: Stdin | None) -> list[rewrite.Rewritten]:
    out = []
    for path, chosen in rewrite.fixable(findings, unsafe=request.unsafe_fixes).items():
        if stdin is None:
            with open(path, "rb") as stream:
                data = stream.read()
        else:
            data = stdin[1]
        rewritten = rewrite.rewrite(path, data, chosen)
        if rewritten is not None:
            out.append(rewritten)
    return out


def _print_diff(findings: Sequence[Finding], request: Request, stdin: Stdin | None) -> None:
    on_terminal = sys.stdout.isatty()
    changed = _rewritten(findings, request, stdin)
    for rewritten in changed:
        for line in rewrite.diff(rewritten):
            _write(sys.stdout, visible(line.rstrip("\r\n")) + "\n" if on_terminal else line)
    left = len(findings) - sum(len(rewritten.applied) for rewritten in changed)
    if left:
        _say([f"{left} of {len(findings)} findings have no fix to show: run without --diff to read them"])


def _write_report(
    findings: Sequence[Finding],
    result: RunResult,
    request: Request,
    stdin: Stdin | None,
    stream: TextIO,
) -> None:
    style = Style(wants_colour(stream) and request.output is None)
    counted = ""
    if request.statistics:
        from gradlint.report.text import statistics

        counted = statistics(findings)
    if request.form == "json":
        from gradlint.report import json

        text = json.render(findings, result)
        _write(sys.stderr, counted)
    else:
        from gradlint.report.text import render

        text = render(findings, result, _line_reader(stdin), style) + counted
    if request.output is None:
        _write(stream, text)
        return
    try:
        with open(request.output, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise UsageProblem(f"--output: {request.output} cannot be written: {error.strerror or error}") from None


def _line_reader(stdin: Stdin | None) -> Callable[[str], Sequence[str]]:
    """The lines of a file; the last file is kept, since findings come sorted by path."""
    kept: dict[str, list[str]] = {}

    def lines(path: str) -> Sequence[str]:
        if path not in kept:
            kept.clear()
            source = decode(path, stdin[1]) if stdin is not None and path == stdin[0] else read(path)
            kept[path] = source.text.split("\n") if isinstance(source, SourceFile) else []
        return kept[path]

    return lines


def _say(lines: Sequence[str]) -> None:
    _write(sys.stderr, "".join(f"gradlint: {visible(line)}\n" for line in lines))


def _write(stream: TextIO, text: str) -> None:
    """Write ``text`` whatever the stream's encoding can say, and find out now if nobody reads it."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
