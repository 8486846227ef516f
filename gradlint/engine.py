"""From paths to findings: the whole flow.

files -> Analyst (facts, candidates, requests) -> ProbeClient (measurements) -> judge -> findings
"""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gradlint.analysis import Analysis, Analyst
from gradlint.config import Settings
from gradlint.facts.index import ProjectIndex
from gradlint.fix import edits
from gradlint.own_findings import Crash, crash_of, crashed, rule_not_loaded, syntax_error, unused_suppression
from gradlint.probe.client import Hello, ProbeClient, Request
from gradlint.probe.policy import choose_python
from gradlint.probe.requests import Prepared, Unsliced
from gradlint.registry import load_all
from gradlint.result import ProbeInfo, Progress, RunResult
from gradlint.rule import Candidate, Finding, Fix, Judgement, Measurement, Rule, SourceEdit, StepExperiment
from gradlint.sources.discover import discover
from gradlint.sources.ignore import Patterns

PARALLEL_FROM = 24
"""Fewer files than this are read in one process: starting others costs more than they save."""
CHUNK = 8
COLLECT_EVERY = 200_000
"""Allocations between two collections: trees hold no cycles, and looking for some takes a quarter of the time."""

NO_TORCH_NOTE = "no PyTorch found for the probe: install torch beside gradlint, or give --python, to get proofs"


class Quiet:
    """A :class:`~gradlint.result.Progress` that nobody watches."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""


@dataclass
class _Probing:
    """What the experiments gave: a measurement for each request key."""

    info: ProbeInfo
    measurements: dict[str, Measurement] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def run(
    paths: Sequence[str],
    settings: Settings,
    *,
    stdin: tuple[str, bytes] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Lint ``paths`` (or the text of ``stdin``, a name and bytes) and give everything that was found."""
    watcher = progress or Quiet()
    loaded = load_all(settings.rules)
    rules = loaded.rules
    notes = list(settings.notes)
    if stdin is None:
        files = list(_files(paths, settings, notes))
        analyses = _read_all(files, paths, settings, watcher)
    else:
        analyses = [_analyst([stdin[0]], settings).analyse(*stdin)]
    probing = _probe(analyses, settings, watcher)
    findings: list[Finding] = []
    crashes: list[Crash] = []
    texts = {os.path.abspath(a.path): (a.path, a.text) for a in analyses}
    for analysis in analyses:
        findings.extend(_static_findings(analysis, rules, settings))
        crashes.extend(analysis.crashes)
        findings.extend(_judged(analysis, texts, rules, probing, crashes))
    findings = list({(f.path, f.location, f.code): f for f in sorted(findings, key=_weight)}.values())
    findings.extend(crashed(c, rules) for c in crashes)
    findings.extend(rule_not_loaded(failure, rules) for failure in loaded.failures)
    findings = [f for f in findings if not _ignored(f, settings)]
    return RunResult(
        findings=tuple(sorted(findings, key=lambda f: (f.path, f.location, f.code))),
        files=sum(a.considered for a in analyses),
        probe=probing.info,
        probe_seconds=probing.seconds,
        refuted=sum(f.judgement.verdict == "refuted" for f in findings),
        notes=(*notes, *probing.notes),
        crashed=bool(crashes or loaded.failures),
    )


# -- files ---------------------------------------------------------------------------------------------


def _files(paths: Sequence[str], settings: Settings, notes: list[str]) -> Iterator[str]:
    return discover(
        paths, settings.exclude, settings.extend_exclude, root=settings.root or None, on_problem=notes.append
    )


def _analyst(paths: Sequence[str], settings: Settings) -> Analyst:
    return Analyst(
        ProjectIndex(paths), load_all(settings.rules).rules, settings.selected, settings.inputs, probing=settings.probe
    )


_ANALYST: Analyst | None = None


def _start(paths: Sequence[str], settings: Settings) -> None:
    global _ANALYST
    gc.set_threshold(COLLECT_EVERY, 20, 20)
    _ANALYST = _analyst(paths, settings)


def _one(path: str) -> Analysis:
    assert _ANALYST is not None
    return _ANALYST.analyse(path)


def _read_all(files: Sequence[str], paths: Sequence[str], settings: Settings, progress: Progress) -> list[Analysis]:
    progress.phase("reading", len(files))
    out: list[Analysis] = []
    if settings.jobs < 2 or len(files) < PARALLEL_FROM:
        _start(paths, settings)
        for path in files:
            out.append(_one(path))
            progress.advance()
        return out
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(settings.jobs, initializer=_start, initargs=(list(paths), settings)) as pool:
        for analysis in pool.map(_one, files, chunksize=CHUNK):
            out.append(analysis)
            progress.advance()
    return out


# -- experiments ---------------------------------------------------------------------------------------


def _probe(analyses: Sequence[Analysis], settings: Settings, progress: Progress) -> _Probing:
    """Run every distinct request once."""
    if not settings.probe:
        return _Probing(ProbeInfo(False, reason="probe-off"))
    if not any(a.candidates for a in analyses):
        return _Probing(ProbeInfo(True))
    return experiments(_merged(p for a in analyses for p in a.prepared if isinstance(p, Prepared)), settings, progress)


def experiments(requests: Sequence[Prepared], settings: Settings, progress: Progress) -> _Probing:
    """Run the requests, confined, under the interpreter that the settings choose."""
    choice = choose_python(settings.python, settings.venv_python, os.environ)
    if choice.path is None:
        notes = [NO_TORCH_NOTE]
        if settings.untrusted_venv:
            notes.append(f"{settings.untrusted_venv} is the project's own and is not used: --trust-project allows it")
        return _Probing(ProbeInfo(False, reason="no-torch"), notes=notes)
    progress.phase("probing", len(requests))
    started = time.monotonic()
    with ProbeClient(
        choice.path,
        settings.probe_timeout,
        settings.probe_budget,
        settings.jobs,
        confinement_required=not settings.trust_project,
    ) as client:
        hello = client.start()
        probing = _Probing(_info(hello))
        if hello.error is not None:
            probing.notes.append(f"no experiments: {hello.detail or hello.error}")
            return probing

        def done(key: str, measurement: Measurement) -> None:
            probing.measurements[key] = measurement
            progress.advance()

        client.run_all([Request(p.key, p.kind, p.body) for p in requests], done)
    probing.seconds = time.monotonic() - started
    return probing


def _merged(prepared: Iterable[Prepared]) -> list[Prepared]:
    """One request per key: rules that speak of one model share its experiment, with the remedies of all."""
    merged: dict[str, Prepared] = {}
    for p in prepared:
        known = merged.get(p.key)
        merged[p.key] = p if known is None else known.merged_with(p)
    return list(merged.values())


def _info(hello: Hello) -> ProbeInfo:
    return ProbeInfo(hello.available, hello.torch, hello.confinement, hello.error)


# -- verdicts ------------------------------------------------------------------------------------------


def _weight(finding: Finding) -> int:
    """For a place that several files lead to: the last one, the heaviest, is reported."""
    return {"refuted": 0, "unverified": 1, "confirmed": 2}[finding.judgement.verdict]


def _judged(
    analysis: Analysis,
    texts: Mapping[str, tuple[str, str]],
    rules: Mapping[str, Rule],
    probing: _Probing,
    crashes: list[Crash],
) -> Iterator[Finding]:
    """The findings on one file, and on helpers of other files that are linted too, as that file uses them."""
    for candidate, prepared in zip(analysis.candidates, analysis.prepared, strict=True):
        path, text = texts.get(os.path.abspath(candidate.path), ("", ""))
        if not path:
            continue
        candidate = dataclasses.replace(candidate, path=path)
        rule = rules[candidate.code]
        measurement = _measurement(prepared, probing)
        try:
            judgement = rule.judge(candidate, measurement)
        except Exception as error:  # one broken rule never costs the others
            crashes.append(crash_of(candidate.path, f"the rule {rule.code}", error))
            continue
        yield _finding(candidate, rule, judgement, text)


def _measurement(prepared: Prepared | Unsliced | None, probing: _Probing) -> Measurement:
    if isinstance(prepared, Unsliced):
        return Measurement(None, prepared.reason, prepared.detail)
    if not probing.info.available:
        return Measurement(None, probing.info.reason or "no-torch")
    if prepared is None:
        return Measurement(None, "not-sliced", "no experiment is known for it")
    return probing.measurements.get(prepared.key, Measurement(None, "worker-died", "the worker gave no answer"))


def _finding(candidate: Candidate, rule: Rule, judgement: Judgement, text: str) -> Finding:
    fix = None
    experiment = candidate.experiment
    if judgement.verdict == "confirmed" and isinstance(experiment, StepExperiment) and experiment.edit is not None:
        edit: SourceEdit | None = experiment.edit
        changed = experiment.edit_path or experiment.path
        if os.path.abspath(changed) != os.path.abspath(candidate.path):
            edit = None  # the remedy is in another file than the finding: it is told, not written
        if edit is not None:
            fix = Fix(edit.applicability, edit.description, edits(text, edit.new_text))
    return Finding(
        path=candidate.path,
        location=candidate.location,
        symbol=candidate.symbol,
        code=rule.code,
        name=rule.name,
        severity=rule.severity,
        message=judgement.message or candidate.message,
        group=candidate.group or f"{candidate.path}:{candidate.location.line}",
        judgement=judgement,
        proof=rule.proof,
        help=candidate.help if judgement.help is None else judgement.help,
        fix=fix,
        related=candidate.related,
        predicted_sick=candidate.predicted_sick,
    )


# -- what needs no experiment --------------------------------------------------------------------------


def _static_findings(analysis: Analysis, rules: Mapping[str, Rule], settings: Settings) -> Iterator[Finding]:
    problem = analysis.problem
    if problem is not None and "GL001" in settings.selected:
        finding = syntax_error(problem, rules)
        if not analysis.suppressions.covers("GL001", finding.name, finding.location):
            yield finding
    if "GL002" in settings.selected:
        for unused in analysis.unused:
            finding = unused_suppression(analysis.path, unused, rules)
            if not analysis.suppressions.covers("GL002", finding.name, finding.location):
                yield finding


def _ignored(finding: Finding, settings: Settings) -> bool:
    """``per-file-ignores``: patterns as in a .gitignore, relative to the configuration's folder."""
    path = os.path.realpath(finding.path)
    base = os.path.realpath(settings.root or os.getcwd())
    return any(
        finding.code in codes and Patterns(base, (pattern,)).decision(path, is_dir=False)
        for pattern, codes in settings.per_file_ignores
    )
