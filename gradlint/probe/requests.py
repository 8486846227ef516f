"""From a candidate to the request that can contradict it: slices, call sites, edits, as plain data.

A request is self-contained: two candidates with the same key share one experiment.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradlint.facts.callsites import CallSite
from gradlint.facts.index import ProjectIndex
from gradlint.facts.models import arguments
from gradlint.facts.vanishing import MIN_DEPTH
from gradlint.probe.policy import vet
from gradlint.probe.slicing import Slice, slice_for, slice_step
from gradlint.rule import Candidate, ModelExperiment, StepExperiment

Shape = Sequence[int]


@dataclass(frozen=True)
class Prepared:
    """One experiment, ready to be sent."""

    key: str
    kind: Literal["model", "step"]
    body: Mapping[str, Any]

    def merged_with(self, other: Prepared) -> Prepared:
        """The same experiment with the remedies and measures of both."""
        body = dict(self.body)
        for key in ("remedies", "measures"):
            mine, others = body.get(key, []), other.body.get(key, [])
            if others:
                body[key] = [*mine, *(r for r in others if r not in mine)]
        return replace(self, body=body) if body != self.body else self


@dataclass(frozen=True)
class Unsliced:
    """Why there is no experiment: one of ``gradlint.rule.REASONS``, and what would make it runnable."""

    reason: str
    detail: str


def prepare(index: ProjectIndex, candidate: Candidate, inputs: Sequence[Shape]) -> Prepared | Unsliced | None:
    """The request for a candidate. ``inputs``: shapes of the model's arguments, where the user gave them."""
    experiment = candidate.experiment
    if isinstance(experiment, ModelExperiment):
        return _model(index, candidate, experiment, inputs)
    if isinstance(experiment, StepExperiment):
        return _step(index, experiment)
    return None


def _model(
    index: ProjectIndex, candidate: Candidate, experiment: ModelExperiment, inputs: Sequence[Shape]
) -> Prepared | Unsliced:
    path, name = experiment.path, experiment.qualname
    calls = index.call_sites(path, name) if experiment.kind != "variable" else []
    line, text = candidate.facts.get("made_at", (0, ""))
    calls.sort(key=lambda c: (c.line != line, arguments(c.args, c.kwargs) != text))
    own = [function for function, how, home in experiment.initialisers if how != "method" and not home]
    others = [(home, function) for function, how, home in experiment.initialisers if how != "method" and home]
    makers = (
        _makers(index, path, name, calls) if experiment.kind == "class" and not any(c.closed for c in calls) else []
    )
    outer_calls = [(maker, c) for home, maker in makers for c in index.call_sites(home, maker)[:2]]
    others.extend(makers)
    part = slice_for(index, path, [name, *own], experiment.scope, [*calls, *(c for _, c in outer_calls)], others)
    refused = _refused(part, name)
    if refused is not None:
        return refused
    held = {m["name"] for m in part.modules}
    body = {
        "modules": [dict(m) for m in part.modules],
        "entry": part.entry,
        "kind": experiment.kind,
        "qualname": name,
        # Arguments that use no name of their module mean the same anywhere.
        "calls": [{**c.to_json(), "module": c.module if c.module in held else part.entry} for c in calls],
        "outer_calls": [
            [maker, {**c.to_json(), "module": c.module if c.module in held else part.entry}] for maker, c in outer_calls
        ],
        "inputs": [list(s) for s in inputs],
        "min_depth": MIN_DEPTH,
        "initialisers": [[f, how, _module(index, home, part.entry)] for f, how, home in experiment.initialisers],
        "controls": {},
    }
    extra = {"remedies": list(experiment.remedies), "measures": list(experiment.measures)}
    return Prepared(_key("model", body), "model", {**body, **extra})


MAX_MAKERS = 4
"""Classes and functions around calls that are sliced with a class, so that it can be met inside of what makes it."""


def _makers(index: ProjectIndex, path: str, name: str, calls: Sequence[CallSite]) -> list[tuple[str, str]]:
    """Where a class is made with arguments that only its maker knows: the classes and functions round those calls.

    Of a function, also what calls that.
    """
    found: list[tuple[str, str]] = []
    work = [(path, name, calls)]
    while work and len(found) < MAX_MAKERS:
        home, made, sites = work.pop(0)
        for site in sites:
            maker = (site.path, site.owner)
            if site.file is None or not site.owner or maker in found or maker == (home, made):
                continue
            found.append(maker)
            work.append((*maker, index.call_sites(*maker)))
    return found[:MAX_MAKERS]


def _module(index: ProjectIndex, path: str, entry: str) -> str:
    file = index.parse(path) if path else None
    return file.module if file is not None else entry


def _step(index: ProjectIndex, experiment: StepExperiment) -> Prepared | Unsliced:
    part = slice_step(index, experiment.path, experiment.region, experiment.fallbacks)
    refused = _refused(part, experiment.region)
    if refused is not None:
        return refused
    edited: dict[str, Any] | None = None
    if experiment.edit is not None:
        changed = experiment.edit_path or experiment.path
        other = index.with_text(changed, experiment.edit.new_text)
        after = slice_step(other, experiment.path, experiment.region, experiment.fallbacks)
        module = next((m for m in after.modules if os.path.abspath(m["path"]) == os.path.abspath(changed)), None)
        if module is not None:
            edited = {"source": module["source"], "lines": list(experiment.edited_lines), "module": module["name"]}
    body: dict[str, Any] = {
        "modules": [dict(m) for m in part.modules],
        "entry": part.entry,
        "region": experiment.region,
        "lines": list(experiment.lines),
        "values": index.values(experiment.path),
        "edited": edited,
        "controls": {},
    }
    if experiment.accumulation > 1:
        body["accumulation"] = experiment.accumulation
    if experiment.overflow:
        body["overflow"] = True
    if experiment.remedy and edited is None:
        body["remedy"] = {"kind": experiment.remedy, **experiment.watched}
    if experiment.fallbacks:
        body["fallbacks"] = list(experiment.fallbacks)
    if experiment.same_batch:
        body["same_batch"] = True
    if experiment.iterators:
        body["iterators"] = [[line, name, module or part.entry] for line, name, module in experiment.iterators]
    return Prepared(_key("step", body), "step", body)


def _refused(part: Slice, name: str) -> Unsliced | None:
    """Why a slice is of no use: it is empty, lacks its own subject, or plainly does what no experiment may."""
    if not part.modules or any(m == f"{part.entry}.{name}" for m in part.missing):
        return Unsliced("not-sliced", f"{name or 'the module'} could not be cut out of the project")
    hostile = vet(part.modules)
    return Unsliced("vetoed", hostile) if hostile is not None else None


def _key(kind: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([kind, body], sort_keys=True).encode()).hexdigest()
