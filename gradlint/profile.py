"""``gradlint probe FILE.py:MODEL``: the gradient profile of one model, from the command line to the table."""

from __future__ import annotations

import ast
import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal

from gradlint import checking
from gradlint.analysis import Analyst
from gradlint.engine import experiments
from gradlint.errors import UsageProblem
from gradlint.facts import ModelFacts
from gradlint.facts.chain_verdict import model_experiment
from gradlint.facts.index import ProjectIndex
from gradlint.probe.requests import Prepared, Unsliced, prepare
from gradlint.probe.worker.layergraph import LayerGraph
from gradlint.report.profile import as_json, as_text
from gradlint.report.progress import TerminalProgress
from gradlint.report.style import Style, visible, wants_colour
from gradlint.report.words import reason_lines
from gradlint.rule import Candidate, Judgement, Location, Measurement, ModelExperiment

EMPTY = LayerGraph((), "static", False)
NOT_MEASURED = 2
REMEDIES = ("relu_he", "he", "xavier", "lecun", "batch_norm", "layer_norm")


@dataclasses.dataclass(frozen=True)
class Request:
    """The command line of ``gradlint probe``, as click gives it."""

    target: str
    inputs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    form: str = "text"
    probe_timeout: float | None = None
    python: str | None = None
    trust_project: bool = False


def profile(request: Request) -> int:
    """Measure and print; the exit status. Raises :class:`UsageProblem` before any work."""
    path, name = _target(request.target)
    shapes = tuple(_shape(text) for text in request.inputs)
    arguments = dict(_argument(text) for text in request.arguments)
    settings = checking.settle(
        checking.Request(
            (path,), python=request.python, probe_timeout=request.probe_timeout, trust_project=request.trust_project
        )
    )
    index = ProjectIndex([path])
    model, experiment = _experiment(index, path, name)
    candidate = Candidate("GL201", path, model.location, name, "", experiment, facts={"made_at": model.made_at})
    prepared = prepare(index, candidate, shapes or settings.inputs.get(name, ()))
    if isinstance(prepared, Prepared):
        prepared = _with_arguments(prepared, arguments)
    if not isinstance(prepared, Prepared):
        return _not_measured(path, name, prepared)
    progress = TerminalProgress(sys.stderr)
    try:
        probing = experiments([prepared], settings, progress)
    finally:
        progress.close()
    for note in (*settings.notes, *probing.notes):
        print(f"gradlint: {visible(note)}", file=sys.stderr)
    measurement = probing.measurements.get(prepared.key, Measurement(None, probing.info.reason or "worker-died"))
    if measurement.data is None:
        return _not_measured(path, name, Unsliced(measurement.reason or "worker-died", measurement.detail))
    told = {"path": path, "model": name, "line": model.location.line, "optimizer": model.optimizer}
    if request.form == "json":
        sys.stdout.write(as_json(told, measurement.data))
    else:
        blocks = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
        sys.stdout.write(as_text(told, measurement.data, Style(wants_colour(sys.stdout)), blocks))
    return 0


def _target(text: str) -> tuple[str, str]:
    path, colon, name = text.rpartition(":")
    if not colon or not path or not name.isidentifier():
        raise UsageProblem(f"{visible(text)}: give a file and a model in it, as in net.py:Net")
    if not os.path.isfile(path):
        raise UsageProblem(f"{visible(path)}: no such file: check the path")
    return path, name


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.strip("()[] ").split(",") if part.strip())
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageProblem(f"--input {visible(text)}: give sizes by commas, the batch first, as in 32,3,64,64")
    return shape


def _argument(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageProblem(f"--arg {visible(text)}: give a name and a value, as in depth=12")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        value = repr(value)  # `--arg act=relu` means the text
    return name, value


def _experiment(index: ProjectIndex, path: str, name: str) -> tuple[ModelFacts, ModelExperiment]:
    """The model as the rules see it, where they do; else what its definition alone tells."""
    file = index.parse(path)
    if file is None:
        raise UsageProblem(f"{visible(path)}: cannot be read or parsed: run `gradlint {visible(path)}` to see why")
    analyst = Analyst(index, {}, frozenset({"GL201"}), {}, probing=True)
    models = analyst.facts(path, file.text, file.tree, []).models
    known = next((m for m in models if m.qualname == name), None)
    if known is not None:
        return known, model_experiment(path, known, REMEDIES, ("profile",))
    node = next((n for n in ast.walk(file.tree) if name in _bound(n)), None)
    if node is None:
        raise UsageProblem(f"{visible(path)}: {name} is not defined there: give a class, a function or a variable")
    kind: Literal["class", "function", "variable"] = "variable"
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
    line = getattr(node, "lineno", 1)
    plain = ModelFacts(name, Location(line, 1, line, 1), kind, name, None, EMPTY, (), True)
    return plain, ModelExperiment(path, kind, name, None, REMEDIES, line, (), ("profile",))


def _bound(node: ast.AST) -> set[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return set()


def _with_arguments(prepared: Prepared, arguments: Mapping[str, str]) -> Prepared:
    """The same request with the user's own arguments in place of what the project's calls pass."""
    if not arguments:
        return prepared
    calls: list[dict[str, Any]] = [dict(c) for c in prepared.body["calls"]]
    first = {**calls[0]} if calls else {"module": prepared.body["entry"], "args": [], "kwargs": {}, "line": 0}
    first["kwargs"] = {**first["kwargs"], **arguments}
    first.pop("inputs", None)
    own = {"module": prepared.body["entry"], "args": [], "kwargs": dict(arguments), "line": 0}
    return dataclasses.replace(prepared, body={**prepared.body, "calls": [first, own], "only_calls": True})


def _not_measured(path: str, name: str, why: Unsliced | None) -> int:
    judgement = Judgement("unverified", why.reason if why else "not-sliced", detail=why.detail if why else "")
    what, advice = reason_lines(judgement)
    tail = f": {advice.replace('on the class line', 'on its line')}, or --input" if advice and why else ""
    print(f"gradlint: {visible(path)}: {name}: {visible(what)}{tail}", file=sys.stderr)
    return NOT_MEASURED
