"""Training steps: the control-flow graph, the events on it, and what GL101 makes of them."""

from __future__ import annotations

import ast
import re
import textwrap
from typing import Any

import pytest

from gradlint import registry
from gradlint.facts import FileFacts
from gradlint.facts.cfg import Guard, build, solve
from gradlint.facts.steps import Source, StepFacts, read_steps
from gradlint.facts.steps_states import common_frame, phases, turn_of
from gradlint.rule import Candidate, Measurement, StepExperiment
from tests.steps_right import RIGHT
from tests.steps_wrong import WRONG

GL101 = registry.load()["GL101"]


def facts_of(source: str) -> FileFacts:
    tree = ast.parse(source)
    return FileFacts("train.py", "train", source, tree, (), read_steps(Source("train.py", source, tree)))


def steps_of(source: str) -> StepFacts:
    steps = facts_of(textwrap.dedent(source)).steps
    assert steps is not None
    return steps


def candidates(source: str) -> list[Candidate]:
    return list(GL101.check(facts_of(source)))


def kinds(source: str, region: str = "") -> list[str]:
    """The events of a region as ``kind:object`` in source order."""
    found = next(r for r in steps_of(source).regions if r.qualname == region)
    return [f"{e.kind}:{e.object}" if e.object else e.kind for _, e in found.events]


@pytest.mark.parametrize("name", RIGHT)
def test_right_programs_are_silent(name: str) -> None:
    assert [(c.location.line, c.message) for c in candidates(RIGHT[name])] == []


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_are_proposed_on_their_lines(name: str) -> None:
    expected = [n for n, line in enumerate(WRONG[name].split("\n"), 1) if line.endswith("# GL101")]
    assert sorted(c.location.line for c in candidates(WRONG[name])) == expected


@pytest.mark.parametrize("name", WRONG)
def test_the_edit_removes_the_finding_and_a_second_run_changes_nothing(name: str) -> None:
    source = WRONG[name]
    for candidate in candidates(source):
        experiment = candidate.experiment
        assert isinstance(experiment, StepExperiment)
        if experiment.edit is None:
            assert name == "backward and step in a helper"
            continue
        assert experiment.edited_lines
        again = candidates(experiment.edit.new_text)
        assert not [c for c in again if c.location.line in experiment.edited_lines]
        assert len(again) == len(candidates(source)) - 1


def test_location_is_the_call_in_characters() -> None:
    source = "for x in d:\n    é = 'ü'; clip_grad_norm_(m.parameters(), 1)\n    f(x).backward()\n    opt.step()\n"
    (candidate,) = candidates(source)
    where = candidate.location
    assert (where.line, where.column, where.end_line, where.end_column) == (2, 14, 2, 48)


def test_symbol_region_and_group() -> None:
    (candidate,) = candidates(WRONG["tutorial order"])
    assert candidate.symbol == "SimpleNet"
    assert candidate.group == "train.py:14"
    assert [(r.path, r.line) for r in candidate.related] == [("train.py", 17)]
    (candidate,) = candidates(WRONG["method of a trainer"])
    assert candidate.symbol == "Trainer.train_epoch"
    assert isinstance(candidate.experiment, StepExperiment)
    assert candidate.experiment.region == "Trainer.train_epoch"
    (candidate,) = candidates(WRONG["cleared first"])
    assert candidate.symbol == "<module>"


# -- events


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("loss.backward()", "backward:loss"),
        ("scaler.scale(loss).backward()", "backward:loss"),
        ("accelerator.backward(loss)", "backward:loss"),
        ("self.manual_backward(loss)", "backward:loss"),
        ("criterion(out, y).backward()", "backward"),
        ("torch.autograd.backward(loss)", "backward:loss"),
        ("optimizer.step()", "step:optimizer"),
        ("scaler.step(optimizer)", "step:optimizer"),
        ("self.optims['g'].step()", "step:self.optims['g']"),
        ("scaler.unscale_(optimizer)", "unscale:optimizer"),
        ("scaler.update()", "scaler_update:scaler"),
        ("optimizer.zero_grad()", "zero_grad:optimizer"),
        ("for p in model.parameters(): p.grad = None", "zero_grad"),
        ("torch.nn.utils.clip_grad_norm_(model.parameters(), 1)", "clip"),
        ("model.clip_grad_norm_(1.0)", "clip"),
        ("loss_scaler(loss, optimizer, parameters=model.parameters())", "unknown"),
        ("trainer.train_step(batch)", "unknown"),
        ("p.grad = torch.ones(3)", "unknown:p"),
    ],
)
def test_events(line: str, event: str) -> None:
    assert event in kinds(f"import torch\nopt.zero_grad()\n{line}\n")[-2:]


@pytest.mark.parametrize(
    "line",
    [
        "scheduler.step()",
        "lr_scheduler.step(epoch)",
        "env.step(action)",
        "ema.step()",
        "metric.step()",
        "prof.step()",
        "meters.update(loss.item(), 3)",
        "print(optimizer)",
        "adjust_learning_rate(optimizer, epoch)",
        "save_checkpoint(model, optimizer)",
        "torch.optim.lr_scheduler.StepLR(optimizer, 3)",
        "np.clip(a, 0, 1)",
        "x = batch.clip(0, 1)",
        "'loss.backward()'",
    ],
)
def test_no_events(line: str) -> None:
    assert kinds(f"import torch\nimport numpy as np\nopt.zero_grad()\n{line}\n") == ["zero_grad:opt"]


def test_helpers_are_built_in_with_their_own_lines() -> None:
    steps = steps_of("""
        class Trainer:
            def run(self, loader):
                for batch in loader:
                    self.one(batch, self.optimizer)
            def one(self, batch, opt):
                opt.zero_grad()
                self.model(batch).backward()
                opt.step()
        """)
    (region,) = steps.regions
    assert region.qualname == "Trainer.run"
    found = {e.kind: e for _, e in region.events}
    assert found["step"].object == "self.optimizer"
    assert found["step"].line == 9
    assert [f.qualname for f in found["step"].frames] == ["Trainer.run", "Trainer.one"]
    frame, depth = common_frame([found["backward"], found["step"]], "train.py")
    assert (frame.qualname, depth) == ("Trainer.one", 1)


def test_recursion_ends() -> None:
    steps = steps_of("""
        def fit(n):
            loss.backward()
            if n:
                fit(n - 1)
            opt.step()
        """)
    assert [e.kind for _, e in steps.regions[0].events] == ["backward", "unknown", "step"]


def test_a_helper_of_another_file_is_resolved() -> None:
    text = "def finish(loss, opt):\n    loss.backward()\n    opt.step()\n"
    other = Source("pkg/tools.py", text, ast.parse(text))
    source = "from pkg.tools import finish\nfor x in d:\n    finish(model(x), optimizer)\n    optimizer.zero_grad()\n"
    steps = read_steps(Source("a.py", source, ast.parse(source), "", "a", lambda name: (other.tree.body[0], other)))
    events = [e for _, e in steps.regions[0].events if e.kind in {"backward", "step"}]
    assert [(e.kind, e.path, e.line) for e in events] == [("backward", "pkg/tools.py", 2), ("step", "pkg/tools.py", 3)]
    assert events[1].object == "optimizer"


def test_optimizers_are_paired_by_their_parameters() -> None:
    steps = steps_of("""
        import torch
        opt_a = torch.optim.Adam(a.parameters())
        opt_b = torch.optim.Adam(b.parameters())
        torch.nn.utils.clip_grad_norm_(a.parameters(), 1)
        torch.nn.utils.clip_grad_norm_(params, 1)
        opt_a.step()
        opt_b.step()
        """)
    events = [e for _, e in steps.regions[0].events]
    of_a, of_some = (e for e in events if e.kind == "clip")
    step_a, step_b = (e for e in events if e.kind == "step")
    assert steps.paired(of_a, step_a) is True
    assert steps.paired(of_a, step_b) is False
    assert steps.paired(of_some, step_a) is None


# -- the graph and the solver


def reaching(source: str) -> set[str]:
    """The calls that may be the last one on a path to the end."""
    tree = ast.parse(textwrap.dedent(source))

    class Reader:
        def read(self, node: ast.expr | ast.stmt, frame: None, room: bool) -> list[str]:
            return [n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]

        def comprehensions(self, node: ast.expr | ast.stmt, frame: None) -> list[ast.For]:
            return []

        def managed(self, node: ast.With | ast.AsyncWith, frame: None, entering: bool) -> list[str]:
            return []

        def was_silent(self, key: object) -> None:
            return None

        def decided(self, test: ast.expr, frame: None) -> bool | None:
            return None

        def guards(self, test: ast.expr, truth: bool, frame: None) -> list[Guard]:
            return []

    graph = build(tree.body, None, Reader())
    states = solve(
        graph,
        {graph.entry: frozenset({"start"})},
        lambda node, state: frozenset({node.event}) if node.event else state,
        frozenset.union,
    )
    return set(states.get(graph.exit, frozenset()))


@pytest.mark.parametrize(
    ("source", "last"),
    [
        ("a()\nb()", {"b"}),
        ("if x:\n    a()\nelse:\n    b()", {"a", "b"}),
        ("a()\nif x:\n    b()", {"a", "b"}),
        ("a()\nif False:\n    b()", {"a"}),
        ("for x in y:\n    a()\n    if x:\n        continue\n    b()", {"a", "b"}),
        ("for x in y:\n    a()\n    if x:\n        break\n    b()\nelse:\n    c()", {"a", "c"}),
        ("while True:\n    a()\n    if x:\n        break\n    b()", {"a"}),
        ("while True:\n    a()", set()),
        ("try:\n    a()\nexcept E:\n    b()\nelse:\n    c()", {"b", "c"}),
        ("try:\n    a()\nfinally:\n    b()", {"b"}),
        ("while x:\n    try:\n        a()\n        break\n    finally:\n        b()\nc()", {"c"}),
        ("with a():\n    b()", {"b"}),
        ("match x:\n    case 1:\n        a()\n    case _:\n        b()", {"a", "b"}),
        ("match x:\n    case 1:\n        a()", {"start", "a"}),
        ("a()\nraise E\nb()", {"a"}),
    ],
)
def test_paths(source: str, last: set[str]) -> None:
    assert reaching(source) == last


def test_gradient_states_through_a_loop() -> None:
    steps = steps_of("""
        for x, y in loader:
            scaler.scale(model(x)).backward()
            if clip:
                scaler.unscale_(opt)
                clip_grad_norm_(model.parameters(), 1)
            scaler.step(opt)
            if done:
                opt.zero_grad()
        """)
    (region,) = steps.regions
    where = {e.kind: index for index, e in region.events}
    step = next(e for _, e in region.of_kind("step"))
    states = phases(steps, region.graph, step)
    assert states[where["backward"]] == {"unknown", "consumed", "spent"}
    assert states[where["unscale"]] == {"scaled"}
    assert states[where["step"]] == {"scaled", "clipped"}
    turn = turn_of(region, where["clip"])
    assert turn is not None
    assert turn.loop == 0


# -- the judgement


def trace(order: str, norm: float, line: int = 6, iterations: int = 3, **clip: Any) -> dict[str, Any]:
    """A path whose iterations hold these events: c clip, b backward, s step."""
    events: list[dict[str, Any]] = []
    values = {"saw": 10.0, "returned": 10.0, "max_norm": 1.0, "norm_type": 2.0, **clip}
    for iteration in range(iterations):
        for letter in order:
            if letter == "c":
                events.append({"kind": "clip", "line": line, "iteration": iteration, **values})
            elif letter == "b":
                events.append({"kind": "backward", "line": 8, "iteration": iteration})
            else:
                step = {"norms": {str(line): norm}, "norms_unscaled": {str(line): norm}}
                events.append({"kind": "step", "line": 9, "iteration": iteration, **step})
    return {"guards": {}, "error": None, "events": events}


def judged(written: dict[str, Any], edited: dict[str, Any] | None, name: str = "loop in a function") -> Any:
    (candidate,) = candidates(WRONG[name])
    data = {"kind": "replica", "paths": [written], "edited_paths": [edited] if edited else [], "assumed": {}}
    return GL101.judge(candidate, Measurement(data))


def test_confirmed_with_the_numbers_of_the_interface() -> None:
    judgement = judged(trace("cbs", 10.0), trace("bcs", 1.0, line=8))
    assert judgement.verdict == "confirmed"
    assert judgement.kind == "replica"
    assert judgement.measured == {
        "clip_saw": 10.0,
        "clip_returned": 10.0,
        "norm_at_step": 10.0,
        "max_norm": 1.0,
        "norm_type": 2.0,
        "iterations": 3,
    }
    assert judgement.after_remedy == {"norm_at_step": 1.0}
    assert judgement.threshold == {"norm_at_step": 1.01}


@pytest.mark.parametrize(
    ("written", "edited"),
    [
        (trace("bcs", 1.0), trace("bcs", 1.0, line=8)),  # right as it stands
        (trace("cbs", 1.0), trace("bcs", 1.0, line=8)),  # nothing left to clip
        (trace("bcs", 10.0), trace("bcs", 1.0, line=8)),  # the order is not what was claimed
        (trace("cbs", 10.0), trace("bcs", 10.0, line=8)),  # the remedy does not cure
        (trace("bsc", 10.0), trace("bcs", 1.0, line=8)),  # after the step: another rule
    ],
)
def test_refuted(written: dict[str, Any], edited: dict[str, Any]) -> None:
    assert judged(written, edited).verdict == "refuted"


def test_the_first_iteration_does_not_count_where_others_follow() -> None:
    late = trace("cbs", 1.0)
    next(e for e in late["events"] if e["kind"] == "step")["norms_unscaled"] = {"6": 10.0}
    assert judged(late, trace("bcs", 1.0, line=8)).verdict == "refuted"


def test_a_call_that_raises_is_the_fault() -> None:
    judgement = judged(trace("c", 0.0, error="RuntimeError: empty", returned=None), trace("bcs", 1.0, line=8))
    assert judgement.verdict == "confirmed"
    assert judgement.measured["error"] == "RuntimeError: empty"
    assert judgement.measured["norm_at_step"] is None
    assert "RuntimeError" in judgement.message


def test_without_an_edit_the_remedy_is_made_in_the_run() -> None:
    name = "backward and step in a helper"
    judgement = judged(trace("cbs", 10.0, line=9), trace("bcs", 1.0, line=9), name)
    assert judgement.verdict == "confirmed"
    assert judgement.after_remedy == {"norm_at_step": 1.0}
    assert judgement.assumed["remedy"] == "clip-at-step, made in the run"
    judgement = judged(trace("cbs", 10.0, line=9), None, name)
    assert (judgement.verdict, judgement.reason) == ("unverified", "not-sliced")
    assert judgement.measured["norm_at_step"] == 10.0


def test_no_measurement_keeps_its_reason() -> None:
    (candidate,) = candidates(WRONG["loop in a function"])
    judgement = GL101.judge(candidate, Measurement(None, "timeout", "5 s"))
    assert (judgement.verdict, judgement.reason, judgement.detail) == ("unverified", "timeout", "5 s")


def test_places_are_every_clip_of_a_whole_step() -> None:
    places = list(GL101.places(facts_of(RIGHT["two optimizers in turn"])))
    assert [p.location.line for p in places] == [7, 12]
    assert all(isinstance(p.experiment, StepExperiment) and p.experiment.edit is None for p in places)


def test_the_page_has_complete_programs() -> None:
    import sys

    page = sys.modules[GL101.check.__module__].__doc__ or ""
    bad, good = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(candidates(bad)) == 1
    assert candidates(good) == []
