"""The replay of training steps: what it records of right and wrong programs, and that it says the same each time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.step_programs import PROGRAMS, StepProgram
from tests.step_programs_scripts import SCRIPTS
from tests.step_programs_trainers import TRAINERS
from tests.step_programs_wrapped import WRAPPED

ALL = [*PROGRAMS, *WRAPPED, *TRAINERS, *SCRIPTS]
WORKER = Path(__file__).resolve().parents[1] / "gradlint" / "probe" / "worker"
TOLERANCE = 1.01

# One process with torch, one fork for each request, as the zygote does it.
SERVER = f"""
import json, os, sys
sys.path.insert(0, {str(WORKER)!r})
import torch
torch.set_num_threads(1)
import no_compiler
no_compiler.install()
import replay
from probe_errors import ProbeError
for line in sys.stdin:
    if not os.fork():
        try:
            answer = replay.run(json.loads(line))
        except ProbeError as error:
            answer = {{"reason": error.reason, "detail": error.detail}}
        sys.stdout.write(json.dumps(answer, allow_nan=False) + "\\n")
        sys.stdout.flush()
        os._exit(0)
    _, status = os.wait()
    if status:
        sys.stdout.write(json.dumps({{"reason": "worker-died", "detail": str(status)}}) + "\\n")
        sys.stdout.flush()
"""


class Replay:
    """Sends requests to a process that has the worker loaded."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, source: str, region: str = "", lines: Sequence[int] = (), modules: Sequence[Any] = (), **more: Any
    ) -> dict[str, Any]:
        """The answer for the one-file program ``source``, or with further ``modules`` beside it."""
        entry = {"name": "train", "path": "train.py", "source": source, "package": "", "is_package": False}
        body = {"modules": [entry, *modules], "entry": "train", "region": region, "lines": list(lines)}
        body |= {"values": {}, "edited": None, "controls": {}} | more
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(body) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    server = Replay()
    yield server
    server.close()


Event = Mapping[str, Any]


def excess(path: Mapping[str, Any], lines: Sequence[int]) -> float | None:
    """The worst norm at the step that follows a clip, as a multiple of the limit; None if the clip met no step.

    The first iteration does not count where there are several: a clip at the top sees the last one's gradient.
    """
    events: Sequence[Event] = path["events"]
    clips = [(i, e) for i, e in enumerate(events) if e["kind"] == "clip" and set(e["lines"]) & set(lines)]
    first = min((e["iteration"] for _, e in clips), default=0)
    several = len({e["iteration"] for _, e in clips}) > 1
    worst: float | None = None
    for index, clip in clips:
        if several and clip["iteration"] == first:
            continue
        line = str(min(set(clip["lines"]) & set(lines)))
        step = next((e for e in events[index:] if e["kind"] == "step" and line in e["norms"]), None)
        if step is not None:
            ratio = step["norms_unscaled"][line] / clip["max_norm"]
            worst = ratio if worst is None else max(worst, ratio)
    return worst


def kinds(path: Mapping[str, Any]) -> list[str]:
    """The kinds of a path's events in order, forwards left out."""
    return [e["kind"] for e in path["events"] if e["kind"] != "forward"]


def of_kind(path: Mapping[str, Any], kind: str) -> list[Event]:
    return [e for e in path["events"] if e["kind"] == kind]


@pytest.mark.parametrize("program", ALL, ids=lambda p: p.name)
def test_a_clip_in_the_wrong_place_lets_the_norm_through(replay: Replay, program: StepProgram) -> None:
    source, lines = program.variant("W")
    answer = replay.run(source, program.region, lines, values=dict(program.values))
    ratio = excess(answer["paths"][0], lines)
    assert ratio is not None, answer["paths"][0]["troubles"]
    assert ratio > TOLERANCE
    assert answer["kind"] == program.kind


@pytest.mark.parametrize("program", ALL, ids=lambda p: p.name)
def test_a_clip_in_the_right_place_holds_on_every_path(replay: Replay, program: StepProgram) -> None:
    source, lines = program.variant("R")
    answer = replay.run(source, program.region, lines, values=dict(program.values))
    ratios = [excess(path, lines) for path in answer["paths"]]
    assert ratios[0] is not None, answer["paths"][0]["troubles"]
    assert all(ratio is None or ratio <= TOLERANCE for ratio in ratios), ratios


def test_the_same_answer_each_time(replay: Replay) -> None:
    for program in PROGRAMS[:12]:
        source, lines = program.variant("W")
        first, second = (replay.run(source, program.region, lines) for _ in range(2))
        assert first == second, program.name


TUTORIAL = next(p for p in PROGRAMS if p.name == "tutorial")
LOOP = next(p for p in PROGRAMS if p.name == "train-epoch")


def test_tutorial_numbers(replay: Replay) -> None:
    """The clip saw nothing and returned 0; ten times the limit reached the step."""
    source, lines = TUTORIAL.variant("W")
    (path,) = replay.run(source, "", lines)["paths"]
    (clip,) = of_kind(path, "clip")
    (step,) = of_kind(path, "step")
    assert (clip["saw"], clip["returned"], clip["max_norm"], clip["norm_type"]) == (0.0, 0.0, 1.0, 2.0)
    assert clip["no_gradients"]
    assert step["norms"][str(lines[0])] == pytest.approx(10.0, rel=1e-4)
    assert step["fresh"]
    assert step["delta"] > 0
    assert kinds(path) == ["clip", "zero_grad", "backward", "step"]


def test_the_edited_source_runs_in_the_same_surroundings(replay: Replay) -> None:
    wrong, lines = LOOP.variant("W")
    right, moved = LOOP.variant("R")
    answer = replay.run(wrong, LOOP.region, lines, edited={"source": right, "lines": moved})
    before, after = excess(answer["paths"][0], lines), excess(answer["edited_paths"][0], moved)
    assert before is not None
    assert after is not None
    assert before > TOLERANCE >= after


def test_a_clip_that_does_nothing_does_not_help(replay: Replay) -> None:
    source, lines = LOOP.variant("R")
    answer = replay.run(source, LOOP.region, lines, controls={"stub": "clip"})
    ratio = excess(answer["paths"][0], lines)
    assert ratio is not None
    assert ratio > TOLERANCE


def test_a_backward_that_does_nothing_leaves_nothing_to_clip(replay: Replay) -> None:
    source, lines = LOOP.variant("W")
    answer = replay.run(source, LOOP.region, lines, controls={"stub": "backward"})
    assert not excess(answer["paths"][0], lines)


def test_both_values_of_an_unknown_guard_are_run(replay: Replay) -> None:
    source = """
import torch
def train(model, loader, optimizer, args):
    for x, y in loader:
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        if args.early:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        loss.backward()
        if not args.early:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
"""
    answer = replay.run(source, "train", [8])
    assert [path["guards"] for path in answer["paths"]] == [{"7": True, "10": False}, {"7": False, "10": True}]
    early, late = answer["paths"]
    assert (excess(early, [8]) or 0) > TOLERANCE
    assert (excess(late, [11]) or 9) <= TOLERANCE


def test_the_value_the_project_tells_is_used(replay: Replay) -> None:
    source, lines = LOOP.variant("R")
    answer = replay.run(source, LOOP.region, lines, values={"args.max_grad_norm": "0.125"})
    assert {e["max_norm"] for e in of_kind(answer["paths"][0], "clip")} == {0.125}
    assert "args.max_grad_norm" not in answer["assumed"]
    unknown = replay.run(source, LOOP.region, lines)
    assert unknown["assumed"]["args.max_grad_norm"] == 1.0


def test_an_infinite_limit_is_not_scaled_to(replay: Replay) -> None:
    source = """
import math
import torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2, 3)).mean().backward()
norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
optimizer.step()
"""
    (path,) = replay.run(source, "", [8])["paths"]
    assert of_kind(path, "clip")[0]["max_norm"] == "inf"
    assert of_kind(path, "backward")[0]["factor"] == 1.0


@pytest.mark.parametrize("default", ["float('inf')", "-1.0", "0"])
def test_a_limit_that_is_off_by_default_is_turned_on_for_the_clip_in_question(replay: Replay, default: str) -> None:
    source = f"""
import torch
def train(model, batches, limit={default}):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
"""
    answer = replay.run(source, "train", [8])
    assert of_kind(answer["paths"][0], "clip")[0]["max_norm"] == 1.0
    assert answer["assumed"]["max_norm" if default != "0" else "limit"] == 1.0


def test_gradients_that_are_large_already_are_left_alone(replay: Replay) -> None:
    source = """
import torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
(1e4 * model(torch.ones(2, 3)).mean()).backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
"""
    (path,) = replay.run(source, "", [6])["paths"]
    assert of_kind(path, "backward")[0]["factor"] == 1.0
    assert of_kind(path, "clip")[0]["saw"] == pytest.approx(2e4, rel=1e-3)


def test_a_clip_of_scaled_gradients_is_told_from_one_of_unscaled(replay: Replay) -> None:
    source = """
import torch
def train(model, loader, optimizer):
    scaler = torch.cuda.amp.GradScaler(init_scale=1024.0)
    for x, y in loader:
        optimizer.zero_grad()
        with torch.cuda.amp.autocast():
            loss = torch.nn.functional.cross_entropy(model(x.cuda()), y.cuda())
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
"""
    path = replay.run(source, "train", [10])["paths"][0]
    clip, step = of_kind(path, "clip")[1], of_kind(path, "step")[1]
    assert clip["saw"] == pytest.approx(10.0 * 1024, rel=1e-3)
    assert clip["saw_unscaled"] == pytest.approx(10.0, rel=1e-3)
    assert step["norm"] == pytest.approx(1.0 / 1024, rel=1e-3)
    assert step["via"] == "scaler#1"


def test_a_missing_zero_grad_shows_in_the_norm(replay: Replay) -> None:
    source = """
import torch
def train(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(10):
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
"""
    path = replay.run(source, "train", [6])["paths"][0]
    sizes = [e["norm"] for e in of_kind(path, "step")]
    assert sizes == pytest.approx([sizes[0], 2 * sizes[0], 3 * sizes[0]])


def test_discarded_gradients_and_a_step_without_backward(replay: Replay) -> None:
    discarded = """
import torch
def train(model, loader, optimizer):
    for x in loader:
        model(x).mean().backward()
        optimizer.zero_grad()
        optimizer.step()
"""
    path = replay.run(discarded, "train", [6])["paths"][0]
    assert all(e["fresh"] and e["cleared"] for e in of_kind(path, "zero_grad"))
    assert not any(e["fresh"] for e in of_kind(path, "step"))
    assert all(e["no_gradients"] for e in of_kind(path, "step"))
    by_hand = discarded.replace("optimizer.zero_grad()", "for p in model.parameters(): p.grad = None")
    path = replay.run(by_hand, "train", [6])["paths"][0]
    assert [e["object"] for e in of_kind(path, "zero_grad")] == ["assignment"] * 3
    assert not any(e["fresh"] for e in of_kind(path, "step"))


def test_an_exhausted_iterator_of_parameters(replay: Replay) -> None:
    source = """
import torch
model = torch.nn.Linear(3, 1)
params = filter(lambda p: p.requires_grad, model.parameters())
optimizer = torch.optim.SGD(params, lr=0.1)
for step in range(100):
    optimizer.zero_grad()
    model(torch.randn(4, 3)).pow(2).mean().backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
"""
    path = replay.run(source, "", [9])["paths"][0]
    assert all(e["exhausted"] and e["parameter_count"] == 0 for e in of_kind(path, "clip"))
    assert len(of_kind(path, "step")) == 3


def test_accumulation_runs_as_long_as_it_needs(replay: Replay) -> None:
    source = """
import torch
def train(model, loader, optimizer):
    for i, batch in enumerate(loader):
        loss = model(batch) / 4
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
"""
    path = replay.run(source, "train", [7])["paths"][0]
    assert len(of_kind(path, "clip")) == 12
    assert len(of_kind(path, "step")) == 3


def test_a_call_that_raises_is_recorded_and_the_run_goes_on(replay: Replay) -> None:
    source = """
import torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.cuda.amp.GradScaler()
for _ in range(5):
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
"""
    path = replay.run(source, "", [10])["paths"][0]
    errors = [e["error"] for e in of_kind(path, "unscale") if e.get("error")]
    assert len(errors) == 3
    assert "unscale_() has already been called" in errors[0]
    assert len(of_kind(path, "step")) == 3


def test_modules_of_the_project_run_and_keep_their_lines(replay: Replay) -> None:
    helper = {
        "name": "pkg.steps",
        "path": "pkg/steps.py",
        "package": "pkg",
        "is_package": False,
        "source": """
import torch
from .missing import something
def backprop(loss, opt):
    opt.zero_grad()
    loss.backward()
    opt.step()
""",
    }
    source = """
import torch
from pkg.steps import backprop
def train(net, loader, opt):
    for x in loader:
        loss = net(x).mean()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        backprop(loss, opt)
"""
    path = replay.run(source, "train", [7], modules=[helper])["paths"][0]
    backward = of_kind(path, "backward")[0]
    assert (backward["module"], backward["line"], backward["lines"]) == ("pkg.steps", 6, [8])
    assert (excess(path, [7]) or 0) > TOLERANCE


def test_a_region_that_is_not_there(replay: Replay) -> None:
    assert replay.run("import torch\n", "train", [3])["reason"] == "not-sliced"
    assert replay.run("def train(:\n", "train", [1])["reason"] == "not-sliced"
    assert replay.run("x = 1\n", "", [1])["reason"] == "not-sliced"


def test_endless_loops_end(replay: Replay) -> None:
    source = """
import torch
def train(model, env, optimizer):
    done = env.reset()
    while not env.ready():
        env.tick()
    while True:
        state = env.step(0)
        loss = model(state).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for item in env:
            print(item)
"""
    path = replay.run(source, "train", [12])["paths"][0]
    assert len(of_kind(path, "step")) == 3


def test_the_user_s_own_exceptions_reach_their_handlers(replay: Replay) -> None:
    source = """
import torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batches = iter([torch.ones(1, 2)])
for step in range(50):
    try:
        batch = next(batches)
    except StopIteration:
        batches = iter([torch.zeros(1, 2)])
        batch = next(batches)
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()
"""
    path = replay.run(source, "", [13])["paths"][0]
    assert path["troubles"] == []
    assert [e["norm"] for e in of_kind(path, "step")] == pytest.approx([3**0.5, 1.0, 1.0])


def test_a_clip_after_the_step_is_known_to_the_steps_before_it(replay: Replay) -> None:
    source = """
import torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2, 3)).mean().backward()
optimizer.step()
torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
"""
    (path,) = replay.run(source, "", [7])["paths"]
    (step,) = of_kind(path, "step")
    assert step["norms"] == {"7": pytest.approx(5.0, rel=1e-4)}
    (clip,) = of_kind(path, "clip")
    assert clip["saw"] == pytest.approx(5.0, rel=1e-4)


PILED = """
import torch
def train(loader):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(10)]
    for step, (x, y) in enumerate(data):
        loss = ((model(torch.dropout(x, 0.5, True)) - y) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
"""


def test_one_batch_piles_up_without_clearing_and_stays_with_it(replay: Replay) -> None:
    path = replay.run(PILED, "train", [9], same_batch=True)["paths"][0]
    sizes = [e["norm_unscaled"] for e in of_kind(path, "step")]
    assert sizes == pytest.approx([sizes[0], 2 * sizes[0], 3 * sizes[0]], rel=1e-5)
    stale = [e["stale"] for e in of_kind(path, "backward")]
    assert stale == pytest.approx([0.0, sizes[0], 2 * sizes[0]], rel=1e-5)
    assert [e["contributed"] for e in of_kind(path, "backward")] == pytest.approx([sizes[0]] * 3, rel=1e-5)
    assert [e["delta"] for e in of_kind(path, "step")] == [0.0] * 3
    right = PILED.replace("        loss.backward()", "        optimizer.zero_grad(); loss.backward()")
    path = replay.run(right, "train", [9], same_batch=True)["paths"][0]
    assert [e["norm_unscaled"] for e in of_kind(path, "step")] == pytest.approx([sizes[0]] * 3, rel=1e-5)
    assert [e["stale"] for e in of_kind(path, "backward")] == [0.0] * 3


@pytest.mark.parametrize(
    ("counting", "guard"),
    [
        ("", "(i + 1) % args.accum == 0"),
        ("n += 1", "n == args.accum"),
        ("self.seen += 1", "self.seen % args.accumulation_steps == 0"),
    ],
)
@pytest.mark.parametrize("discards", [True, False])
def test_what_an_accumulation_keeps_of_its_gradients(replay: Replay, counting: str, guard: str, discards: bool) -> None:
    source = f"""
import torch
def train(self, model, loader, optimizer, args):
    n = 0
    for i, x in enumerate(loader):
        {"optimizer.zero_grad()" if discards else "pass"}
        (model(x).mean() / args.accum).backward()
        {counting or "pass"}
        if {guard}:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
            n = 0
"""
    answer = replay.run(source, "train", [7], same_batch=True)
    steps = of_kind(answer["paths"][0], "step")
    assert [e["contributions"] for e in steps] == [4, 4, 4]
    kept = [e["kept"] / e["accumulated"] for e in steps]
    assert kept == pytest.approx([0.25 if discards else 1.0] * 3, rel=1e-5)


def test_the_norm_ahead_of_a_clip_is_what_a_step_kept(replay: Replay) -> None:
    source = """
import torch
def train(model, loader, optimizer):
    for x in loader:
        optimizer.zero_grad()
        model(x).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
"""
    steps = of_kind(replay.run(source, "train", [7])["paths"][0], "step")
    assert [e["norm"] for e in steps] == pytest.approx([1.0] * 3, rel=1e-4)
    assert [e["kept"] for e in steps] == pytest.approx([10.0] * 3, rel=1e-4)
    assert [e["accumulated"] for e in steps] == pytest.approx([10.0] * 3, rel=1e-4)


def test_consumers_of_a_watched_iterator(replay: Replay) -> None:
    source = """
import torch
class Trainer:
    def __init__(self, model):
        self.model = model
        self.params = (p for p in model.parameters() if p.requires_grad)
        print(sum(p.numel() for p in self.params))
        self.optimizer = torch.optim.SGD(self.params, lr=0.1)
    def fit(self, loader):
        for x in loader:
            self.optimizer.zero_grad()
            self.model(x).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
"""
    path = replay.run(source, "Trainer.fit", [7], iterators=[[6, "self.params"]])["paths"][0]
    first, second, *clips = of_kind(path, "consume")
    assert (first["line"], first["yielded"], first["first"], first["by"]) == (7, 4, True, "other")
    assert (second["line"], second["yielded"], second["first"], second["by"]) == (8, 0, False, "optimizer")
    assert second["error"] == "ValueError: optimizer got an empty parameter list"
    assert {(e["line"], e["yielded"], e["by"]) for e in clips} == {(13, 0, "clip")}
    assert all(e["exhausted"] for e in of_kind(path, "clip"))
    assert len(of_kind(path, "step")) == 3
    listed = source.replace("(p for p in model.parameters() if p.requires_grad)", "list(model.parameters())")
    path = replay.run(listed, "Trainer.fit", [7], iterators=[[6, "self.params"]])["paths"][0]
    assert {(e["line"], e["yielded"]) for e in of_kind(path, "consume")} == {(7, 4), (8, 4), (13, 4)}


def test_gradients_that_the_program_writes_are_fresh(replay: Replay) -> None:
    source = """
import torch
def outer(model, optimizer, tasks):
    for task in tasks:
        grads = torch.autograd.grad(model(task).mean(), list(model.parameters()))
        optimizer.zero_grad()
        for p, g in zip(model.parameters(), grads):
            p.grad = g.detach() if g is not None else None
        optimizer.step()
"""
    steps = of_kind(replay.run(source, "outer", [9])["paths"][0], "step")
    assert [(e["fresh"], e["by_hand"]) for e in steps] == [(True, True)] * 3
