"""Training steps that are spread over objects, frameworks and counters: what the reader makes of them."""

from __future__ import annotations

import ast
import itertools
import pathlib
import re
import textwrap
from collections.abc import Iterable

import pytest

from gradlint import registry
from gradlint.facts import FileFacts
from gradlint.facts.steps import Source, StepFacts, read_steps
from gradlint.facts.steps_states import guards_held
from gradlint.rule import Candidate

RULES = registry.load()
RIGHT = pathlib.Path(__file__).parent / "steps_reach_right.txt"


def facts_of(source: str) -> FileFacts:
    tree = ast.parse(source)
    return FileFacts("train.py", "train", source, tree, (), read_steps(Source("train.py", source, tree)))


def steps_of(source: str) -> StepFacts:
    steps = facts_of(textwrap.dedent(source)).steps
    assert steps is not None
    return steps


def found(source: str) -> list[tuple[str, int]]:
    """Codes and lines of what the rules on training steps propose."""
    facts = facts_of(textwrap.dedent(source))
    codes = [code for code in RULES if code.startswith("GL1")]
    candidates: Iterable[Candidate] = itertools.chain.from_iterable(RULES[code].check(facts) for code in codes)
    return sorted((c.code, c.location.line) for c in candidates)


def kinds(steps: StepFacts, region: str) -> list[str]:
    (graph,) = [r for r in steps.regions if r.qualname == region and r.trainer]
    return [f"{e.kind}:{e.line}" for _, e in graph.events if e.kind in {"zero_grad", "backward", "step", "clip"}]


LIT = """\
import lightning as L
import torch
class Net(L.LightningModule):
    def training_step(self, batch, batch_idx):
        return self.net(batch).mean()
    def on_after_backward(self):
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
"""


def test_an_automatic_step_is_written_out_in_lightnings_order() -> None:
    assert kinds(steps_of(LIT), "Net.training_step") == ["zero_grad:4", "backward:4", "clip:7", "step:4"]
    assert found(LIT) == []


@pytest.mark.parametrize(
    ("hook", "code"),
    [
        ("on_train_batch_start(self, batch, batch_idx)", "GL101"),
        ("on_before_zero_grad(self, optimizer)", "GL101"),
        ("on_before_backward(self, loss)", "GL101"),
        ("on_after_backward(self)", ""),
        ("on_before_optimizer_step(self, optimizer)", ""),
        ("configure_gradient_clipping(self, optimizer)", ""),
        ("on_train_batch_end(self, outputs, batch, batch_idx)", "GL102"),
    ],
)
def test_the_place_of_a_hook_decides(hook: str, code: str) -> None:
    assert found(LIT.replace("on_after_backward(self)", hook)) == ([(code, 7)] if code else [])


@pytest.mark.parametrize(
    "own",
    [
        "    automatic_optimization = False\n",
        "    def __init__(self, cfg):\n        self.automatic_optimization = cfg.automatic\n",
        "    def optimizer_step(self, epoch, batch_idx, optimizer, closure):\n        optimizer.step(closure)\n",
        "    @property\n    def automatic_optimization(self):\n        return False\n",
    ],
)
def test_a_module_with_an_order_of_its_own_is_not_automatic(own: str) -> None:
    source = LIT.replace("on_after_backward(self)", "on_before_zero_grad(self, optimizer)") + own
    assert not any(region.trainer for region in steps_of(source).regions)
    assert found(source) == []


HANDED = """\
import torch
class Engine:
    def __init__(self, net, opt):
        self.net, self.opt = net, opt
        {more}
    def one(self, batch):
        self.opt.zero_grad()
        self.net(batch).mean().backward()
        self.opt.step()
def main(net, loader):
    optimizer = torch.optim.Adam(net.parameters())
    engine = Engine(net, optimizer)
    for batch in loader:
        engine.one(batch)
        optimizer.step()
"""


def test_an_attribute_is_what_the_constructor_was_given() -> None:
    assert found(HANDED.format(more="self.count = 0")) == [("GL106", 15)]


def test_an_attribute_that_is_bound_twice_is_not() -> None:
    assert found(HANDED.format(more="self.opt = torch.optim.SGD(net.head.parameters())")) == []


@pytest.mark.parametrize(
    ("test", "counts"),
    [
        ("i % n == 0", True),
        ("i % args.accum_steps != 0", False),
        ("not i % n", True),
        ("i % n == 0 or last", True),
        ("i % args.accum_steps != 0 and rank != 0", False),
        ("seen == n", True),
        ("epoch == 3", False),
    ],
)
def test_conditions_that_end_a_window(test: str, counts: bool) -> None:
    source = f"""
        for i, x in enumerate(data):
            seen += 1
            loss(x).backward()
            if {test}:
                seen = 0
                opt.step()
    """
    (region,) = steps_of(source).regions
    step = next(k for k, e in region.events if e.kind == "step")
    assert any(guard.counter for guard in guards_held(region.graph)[step]) is counts


@pytest.mark.parametrize(
    ("given", "used_up"),
    [
        ("net.parameters()", True),
        ("filter(wanted, net.parameters())", True),
        ("list(net.parameters())", False),
        ("[p for p in net.parameters()]", False),
    ],
)
def test_an_iterator_that_is_handed_over_is_used_up_in_the_callee(given: str, used_up: bool) -> None:
    source = f"""\
import torch
def fit(net, params, data):
    opt = torch.optim.SGD(params, lr=0.1)
    for x in data:
        opt.zero_grad()
        net(x).sum().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
fit(net, {given}, data)
"""
    assert found(source) == ([("GL107", 7)] if used_up else [])


def test_an_iterator_goes_on_under_the_callers_name() -> None:
    source = """\
import torch
def build(net):
    kept = filter(wanted, net.parameters())
    return torch.optim.SGD(kept, lr=0.1), kept
optimizer, params = build(net)
for x in data:
    optimizer.zero_grad()
    net(x).sum().backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
"""
    assert found(source) == [("GL107", 9)]
    assert found(source.replace("filter(wanted, net.parameters())", "list(net.parameters())")) == []


GAN = """\
class Model(Base):
    def optimize(self):
        self.forward()
        {before}
        self.optimizer_G.zero_grad()
        {between}
        self.optimizer_G.step()
        self.loss(self.netG(self.x)).backward()
        {behind}
"""


@pytest.mark.parametrize(
    ("before", "between", "behind", "silent"),
    [
        ("self.set_requires_grad([self.netD], False)", "pass", "pass", False),
        ("pass", "pass", "sync_grads(self.netG)", False),
        ("pass", "self.set_gradients(self.netG)", "pass", True),
        ("pass", "self.run_generator(self.netG)", "pass", True),
        ("pass", "self.backward_G()", "pass", True),
    ],
)
def test_a_step_behind_a_clearing_is_told_of_unless_something_between_may_give_gradients(
    before: str, between: str, behind: str, silent: bool
) -> None:
    source = GAN.format(before=before, between=between, behind=behind)
    assert found(source) == ([] if silent else [("GL106", 7)])


def test_a_pipeline_schedule_may_run_backward() -> None:
    source = """
        for step in range(steps):
            optimizer.zero_grad()
            losses = schedule(forward_step_func=forward_step, model=model(x))
            optimizer.step()
            update(losses)
    """
    assert found(source) == []


def right_programs() -> list[str]:
    return re.split(r"^# -{10,}.*\n", RIGHT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("source", right_programs(), ids=lambda text: text.partition("\n")[0].lstrip("# "))
def test_look_alikes_are_silent(source: str) -> None:
    assert found(source) == []
