"""The edits that move or write a ``zero_grad``, and the one that makes a list of an iterator."""

from __future__ import annotations

import ast

import pytest

from gradlint.facts.remedies import insert_clearing, move_clearing, wrap_in_list
from gradlint.facts.steps_events import Lines
from gradlint.rule import SourceEdit
from tests.edit_lab import calls, compare, plain, steps

CLIP = "clip_grad_norm_(model.parameters(), 1.0)"


def cleared(text: str, which: int = -1) -> SourceEdit | None:
    """The last clearing of a text moved out of the way of its steps."""
    places = calls(text, "zero_grad", ".grad", "reset")
    return move_clearing(text, places[which], calls(text, "backward"), steps(text))


def in_window(text: str) -> SourceEdit | None:
    """The first clearing of a text, in every micro-batch, moved to behind the step."""
    places = calls(text, "zero_grad", ".grad", "reset")
    return move_clearing(text, places[0], calls(text, "backward"), steps(text), accumulate=True)


# -- moved ahead of the backward


def test_between_backward_and_step() -> None:
    edit = compare(
        cleared,
        """
        for x, y in loader:
            output = model(x)

            # compute the gradients
            loss.backward()
            # forget the old ones
            optimizer.zero_grad()  # every time
            optimizer.step()
        """,
        """
        for x, y in loader:
            output = model(x)

            # forget the old ones
            optimizer.zero_grad()  # every time
            # compute the gradients
            loss.backward()
            optimizer.step()
        """,
        "safe",
        "ahead of the backward",
    )
    assert edit.line_map[5] == 7
    assert edit.line_map[7] == 5


def test_loop_that_clears() -> None:
    edit = compare(
        cleared,
        """
        for x, y in loader:
            loss = criterion(model(x), y)
            loss.backward()

            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad = None

            optimizer.step()
        """,
        """
        for x, y in loader:
            loss = criterion(model(x), y)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad = None
            loss.backward()

            optimizer.step()
        """,
        "safe",
    )
    assert edit.line_map[6] == 8


def test_ahead_of_branches_with_the_backward() -> None:
    compare(
        cleared,
        """
        def train_step(self, batch):
            with autocast():
                loss = self.model(batch)
            if self.amp:
                self.scaler.scale(loss).backward()
            else:
                loss.backward()
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.step(self.optimizer)
        """,
        """
        def train_step(self, batch):
            with autocast():
                loss = self.model(batch)
            self.optimizer.zero_grad(set_to_none=True)
            if self.amp:
                self.scaler.scale(loss).backward()
            else:
                loss.backward()
            self.scaler.step(self.optimizer)
        """,
        "safe",
    )


def test_ahead_of_all_backward_calls_of_the_step_and_no_others() -> None:
    compare(
        cleared,
        """
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        loss_g.backward(retain_graph=True)
        loss_r.backward()
        optimizer_g.zero_grad()
        optimizer_g.step()
        """,
        """
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        loss_g.backward(retain_graph=True)
        loss_r.backward()
        optimizer_g.step()
        """,
        "safe",
    )


def test_inside_a_closure() -> None:
    compare(
        cleared,
        """
        def closure():
            loss = criterion(model(x), y)
            loss.backward()
            if first: optimizer.zero_grad()
            return loss
        """,
        """
        def closure():
            loss = criterion(model(x), y)
            if first: optimizer.zero_grad()
            loss.backward()
            return loss
        """,
        "safe",
    )


@pytest.mark.parametrize(
    ("between", "applicability"),
    [
        ("print(loss.item())", "safe"),
        ("scheduler.step()", "safe"),
        (CLIP, "unsafe"),
        ("scaler.unscale_(opt)", "unsafe"),
        ("norm = grad_norm(model)", "unsafe"),
        ("evaluate(net)", "unsafe"),
        ("for p in ps: p.grad.div_(2)", "unsafe"),
    ],
)
def test_safe_only_where_nothing_reads_the_gradients(between: str, applicability: str) -> None:
    edit = cleared(f"loss.backward()\n{between}\nopt.zero_grad()\nopt.step()\n")
    assert edit is not None
    assert edit.new_text == f"opt.zero_grad()\nloss.backward()\n{between}\nopt.step()\n"
    assert edit.applicability == applicability


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("loss.backward(); opt.zero_grad(); opt.step()\n", "opt.zero_grad(); loss.backward(); opt.step()\n"),
        (
            "if c: f(x).backward(); opt.zero_grad()\nopt.step()\n",
            "if c: opt.zero_grad(); f(x).backward()\nopt.step()\n",
        ),
        (
            "y = f(x); y.backward()\nopt.zero_grad(); opt.step()\n",
            "y = f(x)\nopt.zero_grad()\ny.backward()\nopt.step()\n",
        ),
        ("loss.backward()\nself.reset()\nopt.step()\n", "self.reset()\nloss.backward()\nopt.step()\n"),
        ("loss.backward()\nw.grad = None\nopt.step()\n", "w.grad = None\nloss.backward()\nopt.step()\n"),
        ("\tx.backward()\n\tz.zero_grad()\n\tz.step()", "\tz.zero_grad()\n\tx.backward()\n\tz.step()"),
    ],
)
def test_other_ways_of_writing_it(before: str, after: str) -> None:
    head = "if True:\n" if before.startswith("\t") else ""
    edit = cleared(head + before)
    assert edit is not None
    assert edit.new_text == head + after


def test_behind_the_step_of_its_guard() -> None:
    compare(
        cleared,
        """
        for i, x in enumerate(loader):
            loss.backward()
            if (i + 1) % 4 == 0:
                # clear
                optimizer.zero_grad()
                # update
                optimizer.step()
                scheduler.step()
        """,
        """
        for i, x in enumerate(loader):
            loss.backward()
            if (i + 1) % 4 == 0:
                # update
                optimizer.step()
                # clear
                optimizer.zero_grad()
                scheduler.step()
        """,
        "unsafe",
        "behind the step",
    )


@pytest.mark.parametrize(
    "text",
    [
        "opt.zero_grad()\nloss.backward()\nopt.step()\n",  # nothing to do
        "loss.backward()\nopt.step()\nopt.zero_grad()\n",
        "loss.backward()\nopt = other()\nopt.zero_grad()\nif a: opt.step()\n",
        "for x in d:\n    loss.backward()\n    if a: continue\n    opt.zero_grad()\n    if b: opt.step()\n",
        "loss.backward()\nn = opt.zero_grad() or 1\nif a: opt.step()\n",
        "loss.backward()\nfor p in ps:\n    log(p)\n    p.grad = None\nif a: opt.step()\n",
    ],
)
def test_clearing_is_refused(text: str) -> None:
    assert cleared(text) is None


# -- moved behind the step


def test_out_of_every_micro_batch() -> None:
    edit = compare(
        in_window,
        """
        for i, (x, y) in enumerate(loader):
            # start anew
            optimizer.zero_grad()

            loss = criterion(model(x), y) / 4
            loss.backward()
            if (i + 1) % 4 == 0:
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
        """,
        """
        for i, (x, y) in enumerate(loader):

            loss = criterion(model(x), y) / 4
            loss.backward()
            if (i + 1) % 4 == 0:
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                # start anew
                optimizer.zero_grad()
                scheduler.step()
        """,
        "unsafe",
        "behind the step",
    )
    assert [edit.line_map[line] for line in (4, 7, 9)] == [6, 9, 3]


def test_up_into_the_guard() -> None:
    compare(
        in_window,
        """
        for i, x in enumerate(loader):
            loss.backward()
            if (i + 1) % 4 == 0:
                if amp:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
            for p in model.parameters():
                p.grad = None
        """,
        """
        for i, x in enumerate(loader):
            loss.backward()
            if (i + 1) % 4 == 0:
                if amp:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
                for p in model.parameters():
                    p.grad = None
        """,
        "unsafe",
    )


def test_past_an_early_continue() -> None:
    compare(
        in_window,
        """
        for i, x in enumerate(loader):
            optimizer.zero_grad(); loss = model(x)
            loss.backward()
            if (i + 1) % 4: continue
            optimizer.step()
        """,
        """
        for i, x in enumerate(loader):
            loss = model(x)
            loss.backward()
            if (i + 1) % 4: continue
            optimizer.step()
            optimizer.zero_grad()
        """,
        "unsafe",
    )


def test_only_taken_out_where_it_follows_the_step_already() -> None:
    guard = "if last:\n    optimizer.step()\n    scheduler.step(); optimizer.zero_grad()\n"
    edit = in_window(f"optimizer.zero_grad()\nloss.backward()\n{guard}")
    assert edit is not None
    assert edit.new_text == f"loss.backward()\n{guard}"


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        ("if last: optimizer.step()  # now", "if last:\n    optimizer.step()  # now\n    optimizer.zero_grad()"),
        (
            "if last: a(); optimizer.step(); b()",
            "if last:\n    a(); optimizer.step()\n    optimizer.zero_grad()\n    b()",
        ),
        (
            "if last:\n  optimizer.step(); b()  # b",
            "if last:\n  optimizer.step()\n  optimizer.zero_grad()\n  b()  # b",
        ),
        ("if last:\n\toptimizer.step()", "if last:\n\toptimizer.step()\n\toptimizer.zero_grad()"),
        ("if last:\n\toptimizer.step()\n\t# end\n", "if last:\n\toptimizer.step()\n\toptimizer.zero_grad()\n\t# end\n"),
    ],
)
def test_guards_on_one_line_and_other_indents(guard: str, expected: str) -> None:
    edit = in_window(f"optimizer.zero_grad()\nloss.backward()\n{guard}\n")
    assert edit is not None
    assert edit.new_text == f"loss.backward()\n{expected}\n"


@pytest.mark.parametrize(
    "text",
    [
        "for x in d:\n    loss.backward()\n    if a:\n        opt.step()\n        opt.zero_grad()\n",  # it is there
        "opt.zero_grad()\nopt = other()\nloss.backward()\nif a: opt.step()\n",
        "opt.zero_grad()\nyield 1\nif a: opt.step()\n",
        "if a: opt.step()\nif b: continue\nopt.zero_grad()\n",
        "if opt.step(): pass\nopt.zero_grad()\n",
        "if a: return opt.step()\nopt.zero_grad()\n",
    ],
)
def test_window_is_refused(text: str) -> None:
    assert in_window(text) is None


# -- written


def added(text: str) -> SourceEdit | None:
    """A ``zero_grad`` ahead of the last backward of a text."""
    return insert_clearing(text, calls(text, "backward")[-1], "optimizer.zero_grad()")


def added_behind(text: str) -> SourceEdit | None:
    """A ``zero_grad`` behind the first step of a text."""
    return insert_clearing(text, calls(text, "backward")[-1], "optimizer.zero_grad()", steps(text)[0])


def test_ahead_of_the_backward() -> None:
    edit = compare(
        added,
        """
        for epoch in range(epochs):
            optimizer.zero_grad()
            for x, y in loader:
                loss = criterion(model(x), y)

                # gradients
                loss.backward()
                optimizer.step()
        """,
        """
        for epoch in range(epochs):
            optimizer.zero_grad()
            for x, y in loader:
                loss = criterion(model(x), y)

                optimizer.zero_grad()
                # gradients
                loss.backward()
                optimizer.step()
        """,
        "unsafe",
        "write optimizer.zero_grad() ahead of the backward",
    )
    assert edit.line_map[8] == 7


def test_ahead_of_the_first_backward_of_the_step() -> None:
    compare(
        added,
        """
        loss_d.backward()
        opt_d.step()
        fake = generator(z)
        loss_g.backward(retain_graph=True)
        log(loss_g); loss_r.backward(); opt_g.step()
        """,
        """
        loss_d.backward()
        opt_d.step()
        fake = generator(z)
        optimizer.zero_grad()
        loss_g.backward(retain_graph=True)
        log(loss_g); loss_r.backward(); opt_g.step()
        """,
        "unsafe",
    )


def test_ahead_of_a_with_and_of_branches() -> None:
    compare(
        added,
        """
        if args.apex:
            with amp.scale_loss(loss, optimizer) as scaled_loss:
                scaled_loss.backward()
        elif args.amp:
            scaler.scale(loss).backward()
        else:
            loss.backward()
        optimizer.step()
        """,
        """
        optimizer.zero_grad()
        if args.apex:
            with amp.scale_loss(loss, optimizer) as scaled_loss:
                scaled_loss.backward()
        elif args.amp:
            scaler.scale(loss).backward()
        else:
            loss.backward()
        optimizer.step()
        """,
        "unsafe",
    )


def test_inside_a_condition_that_the_backward_is_under() -> None:
    compare(
        added,
        """
        def closure():
            loss = criterion(model(x), y)
            if loss.requires_grad: loss.backward()
            return loss
        """,
        """
        def closure():
            loss = criterion(model(x), y)
            if loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()
            return loss
        """,
        "unsafe",
    )


def test_behind_the_step() -> None:
    compare(
        added_behind,
        """
        for i, x in enumerate(loader):
            loss.backward()
            if (i + 1) % 4 == 0:
                optimizer.step()  # of the window

            else:
                log(loss)
        """,
        """
        for i, x in enumerate(loader):
            loss.backward()
            if (i + 1) % 4 == 0:
                optimizer.step()  # of the window
                optimizer.zero_grad()

            else:
                log(loss)
        """,
        "unsafe",
        "behind the step",
    )


def test_behind_branches_that_step() -> None:
    compare(
        added_behind,
        """
        if (i + 1) % 4 == 0:
            if self.amp:
                self.scaler.step(optimizer)
                self.scaler.update()
            else:
                optimizer.step()
            self.scheduler.step()
        loss.backward()
        """,
        """
        if (i + 1) % 4 == 0:
            if self.amp:
                self.scaler.step(optimizer)
                self.scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
            self.scheduler.step()
        loss.backward()
        """,
        "unsafe",
    )


@pytest.mark.parametrize(
    "text",
    [
        "optimizer.zero_grad()\nx = f()\nloss.backward()\n",
        "optimizer.zero_grad()\nwith a: loss.backward()\n",
        "f = lambda: loss.backward()\n",
        "while loss.backward():\n    pass\n",
    ],
)
def test_no_clearing_is_written(text: str) -> None:
    assert added(text) is None


# -- a list


def listed(text: str, start: str, kind: type[ast.expr] = ast.Call) -> SourceEdit | None:
    """A list made of the first expression of a kind that begins with something."""
    lines = Lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kind) and (ast.get_source_segment(text, node) or "").startswith(start):
            return wrap_in_list(text, lines.location(node))
    return None


def test_filter() -> None:
    before = plain(
        """
        params = filter(
            lambda p: p.requires_grad,  # not the frozen ones
            model.parameters(),
        )
        optimizer = Adam(params, lr=1e-3)
        """
    )
    edit = listed(before, "filter")
    assert edit is not None
    assert edit.new_text == plain(
        """
        params = list(filter(
            lambda p: p.requires_grad,  # not the frozen ones
            model.parameters(),
        ))
        optimizer = Adam(params, lr=1e-3)
        """
    )
    assert edit.applicability == "safe"
    assert edit.line_map == {line: line for line in range(1, 6)}
    assert listed(edit.new_text, "filter") is None


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("model.parameters()", "list(model.parameters())"),
        ("chain(a.parameters(), b.parameters())", "list(chain(a.parameters(), b.parameters()))"),
        ("map(f, model.layers)", "list(map(f, model.layers))"),
        ("(model.parameters())", "(list(model.parameters()))"),
    ],
)
def test_calls_that_make_iterators(value: str, written: str) -> None:
    edit = listed(f"é = 'é'; ps = {value}  # ß\nopt = SGD(ps)\n", value.strip("()"))
    assert edit is not None
    assert edit.new_text == f"é = 'é'; ps = {written}  # ß\nopt = SGD(ps)\n"
    assert edit.applicability == "safe"
    assert edit.line_map == {1: 1, 2: 2}


def test_generator_expression() -> None:
    text = "ps = (p for p in model.parameters() if p.requires_grad)\nopt = SGD(ps)\n"
    edit = listed(text, "(p for", ast.GeneratorExp)
    assert edit is not None
    assert edit.new_text == "ps = [p for p in model.parameters() if p.requires_grad]\nopt = SGD(ps)\n"
    assert edit.applicability == "safe"


def test_where_list_means_something_else() -> None:
    edit = listed("list = 3\nps = filter(f, ps)\nSGD(ps)\n", "filter")
    assert edit is not None
    assert edit.new_text == "list = 3\nps = [*filter(f, ps)]\nSGD(ps)\n"


@pytest.mark.parametrize(
    ("between", "applicability"),
    [
        ("model.train()", "safe"),
        ("y = model(x)", "safe"),
        ("print(args)", "safe"),
        ("for p in model.head.parameters(): p.requires_grad = False", "unsafe"),
        ("model.head.weight.requires_grad = False", "unsafe"),
        ("freeze(model)", "unsafe"),
        ("model.freeze()", "unsafe"),
        ("model = DDP(model)", "unsafe"),
    ],
)
def test_unsafe_where_the_parameters_may_change_before_their_use(between: str, applicability: str) -> None:
    text = f"ps = filter(lambda p: p.requires_grad, model.parameters())\n{between}\nopt = SGD(ps)\n"
    edit = listed(text, "filter")
    assert edit is not None
    assert edit.applicability == applicability


def test_unsafe_where_the_use_is_not_seen() -> None:
    edit = listed("def f(self):\n    self.ps = self.model.parameters()\n", "self.model.parameters()")
    assert edit is not None
    assert edit.applicability == "unsafe"


@pytest.mark.parametrize(
    ("text", "start", "kind"),
    [
        ("ps = list(filter(f, ps))\n", "filter", ast.Call),
        ("ps = list(filter(f, ps))\n", "list", ast.Call),
        ("ps = [*filter(f, ps)]\n", "filter", ast.Call),
        ("SGD(p for p in ps)\n", "(p for", ast.GeneratorExp),
        ("ps = [p for p in ps]\n", "[p for", ast.ListComp),
    ],
)
def test_what_is_a_list_already_or_has_no_parentheses_of_its_own(text: str, start: str, kind: type[ast.expr]) -> None:
    assert listed(text, start, kind) is None
