"""The edits that move a clip to ahead of its step, and those that bring an ``unscale_`` or a condition to a clip."""

from __future__ import annotations

import pytest

from gradlint.facts.remedies import insert_unscale, move_before, put_under
from gradlint.rule import SourceEdit
from tests.edit_lab import calls, compare, plain, steps

CLIP = "clip_grad_norm_(model.parameters(), 1.0)"


def ahead(text: str, scaled: bool = False) -> SourceEdit | None:
    """The first clip of a text moved to ahead of its steps and behind its backward calls."""
    return move_before(text, calls(text, "clip_grad_norm_")[0], steps(text), calls(text, "backward"), scaled)


def check(before: str, after: str, applicability: str = "safe", scaled: bool = False) -> SourceEdit:
    return compare(lambda text: ahead(text, scaled), before, after, applicability, "ahead of the step")


def refused(text: str, scaled: bool = False) -> None:
    assert ahead(plain(text), scaled) is None


# -- a clip behind its step


def test_straight_line_with_comments() -> None:
    edit = check(
        """
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()

            # clip the gradients
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as in the paper

            running_loss += loss.item()
        """,
        """
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            # clip the gradients
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as in the paper
            optimizer.step()

            running_loss += loss.item()
        """,
    )
    assert {new: old for new, old in edit.line_map.items() if new != old} == {6: 8, 7: 5, 8: 6, 9: 10}


def test_the_paragraph_of_the_step() -> None:
    check(
        """
        def train_step(batch):
            loss = model(batch)
            loss.backward()

            # update the weights
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clip_grad_norm_(model.parameters(), 1.0)
            return loss.item()
        """,
        """
        def train_step(batch):
            loss = model(batch)
            loss.backward()

            clip_grad_norm_(model.parameters(), 1.0)
            # update the weights
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()
        """,
    )


def test_last_in_its_block_with_other_comments() -> None:
    check(
        """
        for x in loader:
            loss.backward()
            optimizer.step()
            # the next line was added later

            clip_grad_norm_(model.parameters(), 1.0)
            # TODO: warm up
        print("done")
        """,
        """
        for x in loader:
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            # the next line was added later
            # TODO: warm up
        print("done")
        """,
    )


def test_result_that_is_logged_later() -> None:
    check(
        """
        for x in loader:
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.update(loss.item(), x.size(0))
            grad_norm = clip_grad_norm_(model.parameters(), args.clip).item()
            if step % 100 == 0:
                writer.add_scalar("norm", grad_norm, step)
        """,
        """
        for x in loader:
            loss.backward()
            grad_norm = clip_grad_norm_(model.parameters(), args.clip).item()
            optimizer.step()
            scheduler.step()
            losses.update(loss.item(), x.size(0))
            if step % 100 == 0:
                writer.add_scalar("norm", grad_norm, step)
        """,
    )


def test_guard_and_with_move_along() -> None:
    check(
        """
        for x in loader:
            loss.backward()
            with timer("step"):
                optimizer.step()
            if args.clip > 0:
                with torch.no_grad():
                    # explosions
                    clip_grad_norm_(model.parameters(), args.clip)
        """,
        """
        for x in loader:
            loss.backward()
            if args.clip > 0:
                with torch.no_grad():
                    # explosions
                    clip_grad_norm_(model.parameters(), args.clip)
            with timer("step"):
                optimizer.step()
        """,
    )


def test_choice_between_clips() -> None:
    check(
        """
        loss.backward()
        optimizer.step()
        if args.kind == "norm":
            clip_grad_norm_(model.parameters(), 1.0)
        elif args.kind == "value":
            clip_grad_value_(model.parameters(), 1.0)
        else:
            pass
        scheduler.step()
        """,
        """
        loss.backward()
        if args.kind == "norm":
            clip_grad_norm_(model.parameters(), 1.0)
        elif args.kind == "value":
            clip_grad_value_(model.parameters(), 1.0)
        else:
            pass
        optimizer.step()
        scheduler.step()
        """,
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"opt.step(); {CLIP}  # both\n", f"{CLIP}; opt.step()  # both\n"),
        (
            f"loss.backward(); opt.step(); norm = {CLIP};log(norm)\n",
            f"loss.backward(); norm = {CLIP}; opt.step();log(norm)\n",
        ),
        (f"if c: opt.step(); {CLIP}\n", f"if c: {CLIP}; opt.step()\n"),
        (f"opt.step(); a()\n{CLIP}; b()\n", f"{CLIP}\nopt.step(); a()\nb()\n"),
        (f"loss.backward(); opt.step()  # go\n{CLIP}\n", f"loss.backward()\n{CLIP}\nopt.step()  # go\n"),
        (f"if c:\n\topt.step()\n\tif d: {CLIP}  # d\n", f"if c:\n\tif d: {CLIP}  # d\n\topt.step()\n"),
        (f"if c:\n  opt.step()\n  {CLIP}\n", f"if c:\n  {CLIP}\n  opt.step()\n"),
        (f"loss.backward()\nopt.step()\n{CLIP}", f"loss.backward()\n{CLIP}\nopt.step()"),
        (f"loss.backward()\r\nopt.step()\r\n{CLIP}\r\n", f"loss.backward()\r\n{CLIP}\r\nopt.step()\r\n"),
        (f"é = 'ü'; opt.step(); {CLIP}\n", f"é = 'ü'; {CLIP}; opt.step()\n"),
    ],
)
def test_one_line_forms_and_line_ends(before: str, after: str) -> None:
    edit = ahead(before)
    assert edit is not None
    assert edit.new_text == after
    old, new = before.splitlines(), after.splitlines()
    clip = next(k for k, line in enumerate(old, 1) if CLIP in line)
    assert [k for k, line in enumerate(new, 1) if CLIP in line and edit.line_map[k] == clip]


def test_into_the_guard_of_an_accumulated_step() -> None:
    edit = check(
        """
        class Trainer:
            @timed
            def train(self, loader):
                for i, batch in enumerate(loader):
                    loss = self.model(batch) / self.every
                    loss.backward()
                    if (i + 1) % self.every == 0:
                        # update
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                    norm = torch.nn.utils.clip_grad_norm_(
                        self.model.parameters(),  # all of them
                        max_norm=self.max_norm,
                    )
                    self.logger.log("norm", norm)
                    self.global_step += 1
        """,
        """
        class Trainer:
            @timed
            def train(self, loader):
                for i, batch in enumerate(loader):
                    loss = self.model(batch) / self.every
                    loss.backward()
                    if (i + 1) % self.every == 0:
                        norm = torch.nn.utils.clip_grad_norm_(
                            self.model.parameters(),  # all of them
                            max_norm=self.max_norm,
                        )
                        self.logger.log("norm", norm)
                        # update
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                    self.global_step += 1
        """,
        "unsafe",
    )
    assert [edit.line_map[line] for line in (8, 11, 12, 14)] == [11, 14, 15, 9]


def test_into_a_guard_on_one_line() -> None:
    check(
        """
        for i, x in enumerate(loader):
        \tloss.backward()
        \tif i % 4 == 3: optimizer.step(); optimizer.zero_grad()  # window
        \tclip_grad_norm_(model.parameters(), 1.0)
        """,
        """
        for i, x in enumerate(loader):
        \tloss.backward()
        \tif i % 4 == 3:
        \t\tclip_grad_norm_(model.parameters(), 1.0)
        \t\toptimizer.step(); optimizer.zero_grad()  # window
        """,
        "unsafe",
    )


def test_into_a_guard_with_the_same_condition() -> None:
    check(
        """
        loss.backward()
        if sync:
            optimizer.step()
        if sync:
            norm = clip_grad_norm_(model.parameters(), 1.0)
            log(norm)
        """,
        """
        loss.backward()
        if sync:
            norm = clip_grad_norm_(model.parameters(), 1.0)
            log(norm)
            optimizer.step()
        """,
    )


def test_ahead_of_branches_that_all_step() -> None:
    check(
        """
        loss.backward()
        if closure is None:
            optimizer.step()
        else:
            optimizer.step(scale)
        clip_grad_norm_(model.parameters(), 1.0)
        """,
        """
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        if closure is None:
            optimizer.step()
        else:
            optimizer.step(scale)
        """,
    )


def test_into_both_branches_of_amp() -> None:
    edit = check(
        """
        for x in loader:
            if args.amp:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
            # keep it small
            clip_grad_norm_(model.parameters(), 1.0)
        """,
        """
        for x in loader:
            if args.amp:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                # keep it small
                clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                # keep it small
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        """,
        "unsafe",
        scaled=True,
    )
    assert [new for new, old in edit.line_map.items() if old == 10] == [6, 12]


def test_a_result_that_all_branches_have() -> None:
    text = f"if amp:\n    scaler.step(opt)\nelse:\n    opt.step()\nnorm = {CLIP}\na()\nlog(norm)\n"
    edit = ahead(text, scaled=True)
    assert edit is not None
    assert edit.new_text == (
        f"if amp:\n    scaler.unscale_(opt)\n    norm = {CLIP}\n    scaler.step(opt)\n"
        f"else:\n    norm = {CLIP}\n    opt.step()\na()\nlog(norm)\n"
    )


@pytest.mark.parametrize("line", ["scaler.unscale_(optimizer)", "if amp: scaler.unscale_(optimizer)"])
def test_unscale_that_is_there(line: str) -> None:
    check(
        f"""
        scaler.scale(loss).backward()
        {line}
        if finite(loss):
            scaler.step(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.update()
        """,
        f"""
        scaler.scale(loss).backward()
        {line}
        if finite(loss):
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        """,
        scaled=True,
    )


def test_unscale_of_another_optimizer_does_not_count() -> None:
    text = "scaler.unscale_(opt_d)\nscaler.step(opt_g); clip_grad_norm_(g.parameters(), 1.0)\n"
    edit = ahead(text, scaled=True)
    assert edit is not None
    assert edit.new_text == (
        "scaler.unscale_(opt_d)\nscaler.unscale_(opt_g); clip_grad_norm_(g.parameters(), 1.0); scaler.step(opt_g)\n"
    )


def test_unscale_that_came_too_late_moves_along() -> None:
    check(
        """
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.update()
        """,
        """
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        """,
        "unsafe",
        scaled=True,
    )


def test_into_a_closure() -> None:
    check(
        """
        def calibrate(rounds):
            def closure():
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                if loss.requires_grad:
                    loss.backward()
                return loss

            for _ in range(rounds):
                loss = optimizer.step(closure)
                # keep it small
                clip_grad_norm_(model.parameters(), 1.0)
                print(loss)
        """,
        """
        def calibrate(rounds):
            def closure():
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                if loss.requires_grad:
                    loss.backward()
                # keep it small
                clip_grad_norm_(model.parameters(), 1.0)
                return loss

            for _ in range(rounds):
                loss = optimizer.step(closure)
                print(loss)
        """,
        "unsafe",
    )


def test_into_the_loop_that_steps() -> None:
    check(
        """
        for epoch in range(epochs):
            for x in loader:
                loss = model(x)
                loss.backward()
                optimizer.step()
            clip_grad_norm_(model.parameters(), 1.0)
        """,
        """
        for epoch in range(epochs):
            for x in loader:
                loss = model(x)
                loss.backward()
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        """,
        "unsafe",
    )


def test_match_and_try_stay() -> None:
    check(
        """
        def step(kind):
            match kind:
                case "train":
                    try:
                        loss.backward()
                        optimizer.step()
                    except RuntimeError:  # out of memory
                        torch.cuda.empty_cache()
                    finally:
                        timer.stop()
                    clip_grad_norm_(model.parameters(), 1.0)
                case _:
                    pass
        """,
        """
        def step(kind):
            match kind:
                case "train":
                    try:
                        loss.backward()
                        clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                    except RuntimeError:  # out of memory
                        torch.cuda.empty_cache()
                    finally:
                        timer.stop()
                case _:
                    pass
        """,
        "unsafe",
    )


def test_backward_of_another_step_on_the_way() -> None:
    text = f"d.backward()\nopt_d.step()\ng.backward()\n{CLIP}\nopt_g.step()\n"
    edit = move_before(text, calls(text, "norm_")[0], calls(text, "opt_d.step"), calls(text, "backward"))
    assert edit is not None
    assert edit.new_text == f"d.backward()\n{CLIP}\nopt_d.step()\ng.backward()\nopt_g.step()\n"
    assert edit.applicability == "unsafe"


def test_steps_in_another_branch_do_not_matter() -> None:
    text = f"if amp:\n    scaler.step(opt)\nelse:\n    opt.step()\n    {CLIP}\n"
    edit = ahead(text)
    assert edit is not None
    assert edit.new_text == f"if amp:\n    scaler.step(opt)\nelse:\n    {CLIP}\n    opt.step()\n"


@pytest.mark.parametrize(
    "between",
    [
        "model = other()",  # the name it reads means something else
        "model.parameters = list",
        "for model in models: pass",
        "if bad: continue",  # it would run where it did not
        "if bad: raise E",
        "x = yield 1",
        "print(norm)",  # the previous one is meant
        "norm = 0",
    ],
)
def test_what_it_does_not_cross(between: str) -> None:
    refused(f"for x in d:\n    loss.backward()\n    opt.step()\n    {between}\n    norm = {CLIP}\n")


@pytest.mark.parametrize(
    "text",
    [
        f"opt.step()\nprint({CLIP})\n",  # a part of a statement
        f"opt.step()\nif a:\n    {CLIP}\n    h()\n",
        f"opt.step()\nif a:\n    h()\nelse:\n    {CLIP}\n",
        f"opt.step()\nfor m in ms:\n    {CLIP}\n",
        f"if a:\n    opt.step()\nnorm = {CLIP}\nfoo()\nprint(norm)\n",  # the norm would be missing
        f"if a:\n    opt.step()\nself.norm = {CLIP}\ndef f(self):\n    return self.norm\n",
        f"opt.step()\nloss.backward()\n{CLIP}\n",  # it has to come behind the backward
        f"opt.step(); loss.backward(); {CLIP}\n",
        f"def closure():\n    model = f()\n    loss.backward()\nopt.step(closure)\n{CLIP}\n",  # another model
        f"def closure(model):\n    loss.backward()\nopt.step(closure)\n{CLIP}\n",
        f"def closure():\n    return loss.backward()\nopt.step(closure)\n{CLIP}\n",
        f"def closure():\n    loss.backward()\nopt.step(closure)\nnorm = {CLIP}\na()\nlog(norm)\n",
        f"opt.step(lambda: loss.backward())\n{CLIP}\n",
        f"if opt.step():\n    {CLIP}\n",
        f"try:\n    opt.step()\nfinally:\n    {CLIP}\n",
        f"while opt.step():\n    pass\n{CLIP}\n",
        f"{CLIP}\nopt.step()\n",  # it is there already
        f"{CLIP}; opt.step()\n",
        f"with a:\n    {CLIP}\n    b()\n    if c:\n        opt.step()\n    else:\n        opt.step()\n",
    ],
)
def test_what_it_does_not_take_apart(text: str) -> None:
    refused(text)


@pytest.mark.parametrize("step", ["scaler.step(opts[0])", "for o in opts: scaler.step(o)"])
def test_scaled_gradients_without_a_plain_step_are_refused(step: str) -> None:
    refused(f"scaler.scale(loss).backward()\n{step}\n{CLIP}\n", scaled=True)


@pytest.mark.parametrize(
    ("between", "applicability"),
    [
        ("total += loss.item()", "safe"),
        ("optimizer.zero_grad()", "safe"),
        ("lr_scheduler.step()", "safe"),
        ("scaler.update()", "safe"),
        ("wandb.log({'loss': loss})", "safe"),
        ("logits = model(x)", "safe"),
        ("loss = criterion(model(x), y)", "safe"),
        ("model.eval()", "safe"),
        ("with torch.no_grad(): acc = accuracy(logits, y)", "safe"),
        ("opt_b.step()", "unsafe"),
        ("p.grad.mul_(2)", "unsafe"),
        ("log_gradients(model)", "unsafe"),
        ("dist.all_reduce(x)", "unsafe"),
        ("ema.update(model)", "unsafe"),
        ("adjust(optimizer, lr)", "unsafe"),
        ("model.regularize()", "unsafe"),
        ("evaluate()", "unsafe"),
        ("while busy(x): pass", "unsafe"),
        ("loss_b.backward()", "unsafe"),
    ],
)
def test_safe_only_where_nothing_on_the_way_may_touch_gradients(between: str, applicability: str) -> None:
    text = f"loss.backward()\nopt.step()\n{between}\n{CLIP}\n"
    edit = move_before(text, calls(text, "clip_grad_norm_")[0], calls(text, "opt.step"), calls(text, "loss.backward"))
    assert edit is not None
    assert edit.applicability == applicability


@pytest.mark.parametrize(
    ("between", "applicability"), [("self.after_step()", "unsafe"), ("self.log(loss)", "safe"), ("self.n += 1", "safe")]
)
def test_methods_of_the_object_that_holds_the_model(between: str, applicability: str) -> None:
    text = f"self.opt.step()\n{between}\nclip_grad_norm_(self.model.parameters(), 1.0)\n"
    edit = ahead(text)
    assert edit is not None
    assert edit.applicability == applicability


# -- a clip in every micro-batch


def test_down_into_the_guard_of_the_step() -> None:
    edit = check(
        """
        for i, batch in enumerate(loader):
            loss = model(batch) / 4
            loss.backward()
            # clip
            norm = clip_grad_norm_(model.parameters(), 1.0)
            if (i + 1) % 4 == 0 or i + 1 == len(loader):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                log(norm)
        """,
        """
        for i, batch in enumerate(loader):
            loss = model(batch) / 4
            loss.backward()
            if (i + 1) % 4 == 0 or i + 1 == len(loader):
                # clip
                norm = clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                log(norm)
        """,
        "unsafe",
    )
    assert edit.line_map[6] == 5


def test_down_with_what_needs_the_result() -> None:
    check(
        """
        def train(loader):
            for i, batch in enumerate(loader):
                model(batch).backward()
                if args.clip: norm = clip_grad_norm_(model.parameters(), args.clip)
                meter.update(norm)
                count += 1

                if count % args.every == 0:
                    optimizer.step()
        def other():
            norm = 3
            return norm
        """,
        """
        def train(loader):
            for i, batch in enumerate(loader):
                model(batch).backward()
                count += 1

                if count % args.every == 0:
                    if args.clip: norm = clip_grad_norm_(model.parameters(), args.clip)
                    meter.update(norm)
                    optimizer.step()
        def other():
            norm = 3
            return norm
        """,
        "unsafe",
    )


def test_down_past_an_early_continue() -> None:
    check(
        """
        for i, batch in enumerate(loader):
            model(batch).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            if (i + 1) % 4:
                continue

            # the window is full
            optimizer.step()
            optimizer.zero_grad()
        """,
        """
        for i, batch in enumerate(loader):
            model(batch).backward()
            if (i + 1) % 4:
                continue

            clip_grad_norm_(model.parameters(), 1.0)
            # the window is full
            optimizer.step()
            optimizer.zero_grad()
        """,
        "unsafe",
    )


def test_down_with_its_unscale() -> None:
    check(
        """
        for i, batch in enumerate(loader):
            scaler.scale(model(batch)).backward()
            scaler.unscale_(optimizer)  # for the clip
            clip_grad_norm_(model.parameters(), 1.0)
            if (i + 1) % 4 == 0:
                scaler.step(optimizer)
                scaler.update()
        """,
        """
        for i, batch in enumerate(loader):
            scaler.scale(model(batch)).backward()
            if (i + 1) % 4 == 0:
                scaler.unscale_(optimizer)  # for the clip
                clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
        """,
        "unsafe",
        scaled=True,
    )


def test_down_with_an_unscale_under_its_guard() -> None:
    check(
        """
        for i, batch in enumerate(loader):
            scaler.scale(model(batch)).backward()
            if args.clip is not None:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), args.clip)
            if (i + 1) % 4 == 0:
                scaler.step(optimizer)
        """,
        """
        for i, batch in enumerate(loader):
            scaler.scale(model(batch)).backward()
            if (i + 1) % 4 == 0:
                if args.clip is not None:
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(model.parameters(), args.clip)
                scaler.step(optimizer)
        """,
        "unsafe",
        scaled=True,
    )


def test_down_behind_an_unscale_that_is_written() -> None:
    check(
        """
        for i, batch in enumerate(loader):
            scaler.scale(model(batch)).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            if (i + 1) % 4 == 0:
                if finite(loss):
                    scaler.step(self.optimizer)
                scaler.update()
        """,
        """
        for i, batch in enumerate(loader):
            scaler.scale(model(batch)).backward()
            if (i + 1) % 4 == 0:
                if finite(loss):
                    scaler.unscale_(self.optimizer)
                    clip_grad_norm_(model.parameters(), 1.0)
                    scaler.step(self.optimizer)
                scaler.update()
        """,
        "unsafe",
        scaled=True,
    )


@pytest.mark.parametrize(
    "text",
    [
        f"norm = {CLIP}\nif sync:\n    opt.step()\nprint(norm)\n",  # the norm would be missing
        f"norm = {CLIP}\nif sync and norm < 9:\n    opt.step()\n",
        f"for x in d:\n    print(norm)\n    norm = {CLIP}\n    if a: continue\n    opt.step()\n",
        f"{CLIP}\nmodel = f()\nif sync:\n    opt.step()\n",
        f"{CLIP}\nyield 1\nif sync:\n    opt.step()\n",
        f"loss.backward(); scaler.unscale_(opt)\n{CLIP}\nif sync:\n    scaler.step(opt)\n",  # unscaled again and again
        f"scaler.unscale_(opt); a()\n{CLIP}\nif sync:\n    scaler.step(opt)\n",
        f"scaler.unscale_(opt); {CLIP}; a()\nif sync:\n    scaler.step(opt)\n",
        f"{CLIP}\nif sync:\n    opt.step()\nelse:\n    opt.step()\n",  # nothing to do
        f"{CLIP}\nif sync:\n    loss.backward()\nif sync:\n    opt.step()\nloss.backward()\n",
    ],
)
def test_what_does_not_move_down(text: str) -> None:
    refused(text)


@pytest.mark.parametrize(
    "line",
    [
        f"norm = {CLIP}; log(norm)",
        f"scaler.unscale_(opt); {CLIP}",
        f"if c: norm = {CLIP}; log(norm)",
        f"if c: scaler.unscale_(opt); {CLIP}  # c",
    ],
)
def test_a_line_moves_whole_with_what_belongs_to_the_clip(line: str) -> None:
    guard = "if sync:\n    scaler.step(opt)\n"
    edit = ahead(f"loss.backward()\n{line}\n{guard}")
    assert edit is not None
    assert edit.new_text == f"loss.backward()\nif sync:\n    {line}\n    scaler.step(opt)\n"


# -- an unscale_


def unscaled(text: str) -> SourceEdit | None:
    """An ``unscale_`` written ahead of the first clip, or the one there is moved."""
    existing = calls(text, "unscale_")
    return insert_unscale(text, calls(text, "clip_grad_norm_")[0], "scaler", "optimizer", next(iter(existing), None))


def written(text: str) -> SourceEdit | None:
    return insert_unscale(text, calls(text, "clip_grad_norm_")[0], "scaler", "optimizer")


def test_unscale_ahead_of_the_clip() -> None:
    edit = compare(
        written,
        """
        for x in loader:
            scaler.scale(loss).backward()

            # clip
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
        """,
        """
        for x in loader:
            scaler.scale(loss).backward()

            scaler.unscale_(optimizer)
            # clip
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
        """,
        "unsafe",
        "write scaler.unscale_(optimizer)",
    )
    assert edit.line_map == {1: 1, 2: 2, 3: 3, 5: 4, 6: 5, 7: 6}


def test_unscale_under_the_guard_of_the_clip() -> None:
    compare(
        written,
        """
        scaler.scale(loss).backward()
        if args.clip:
            # clip
            norm = clip_grad_norm_(model.parameters(), args.clip)
        scaler.step(optimizer)
        """,
        """
        scaler.scale(loss).backward()
        if args.clip:
            scaler.unscale_(optimizer)
            # clip
            norm = clip_grad_norm_(model.parameters(), args.clip)
        scaler.step(optimizer)
        """,
        "unsafe",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"if c: {CLIP}  # c\n", f"if c:\n    scaler.unscale_(optimizer)\n    {CLIP}  # c\n"),
        (f"if c:\n\ta()\n\tif d: b(); {CLIP}\n", f"if c:\n\ta()\n\tif d:\n\t\tb()\n\t\t@\n\t\t{CLIP}\n"),
        (f"a(); {CLIP}; b()  # c\n", f"a()\n@\n{CLIP}; b()  # c\n"),
        (f"x = f({CLIP}, 3)\n", f"@\nx = f({CLIP}, 3)\n"),
        (f"if {CLIP} > 5:\n  a()\n", f"@\nif {CLIP} > 5:\n  a()\n"),
        (f"def f():\n  return {CLIP}\n", f"def f():\n  @\n  return {CLIP}\n"),
    ],
)
def test_unscale_ahead_of_other_statements(before: str, after: str) -> None:
    edit = written(before)
    assert edit is not None
    assert edit.new_text == after.replace("@", "scaler.unscale_(optimizer)")


def test_unscale_under_the_condition_of_the_scaler() -> None:
    compare(
        written,
        """
        def train_step(batch):
            if not self.use_amp:
                loss.backward()
            else:
                scaler.scale(loss).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            if self.use_amp:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        """,
        """
        def train_step(batch):
            if not self.use_amp:
                loss.backward()
            else:
                scaler.scale(loss).backward()
            if self.use_amp:
                scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            if self.use_amp:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        """,
        "unsafe",
    )


def test_unscale_in_the_branch_of_the_scaler() -> None:
    compare(
        written,
        """
        if amp:
            scaler.scale(loss).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            if finite(loss):
                scaler.step(optimizer)
        """,
        """
        if amp:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            if finite(loss):
                scaler.step(optimizer)
        """,
        "unsafe",
    )


def test_late_unscale_moves_up() -> None:
    compare(
        unscaled,
        """
        for x in loader:
            scaler.scale(loss).backward()

            # clip
            norm = clip_grad_norm_(model.parameters(), 1.0)
            log(norm)
            # unscale
            scaler.unscale_(optimizer)  # once
            scaler.step(optimizer)
        """,
        """
        for x in loader:
            scaler.scale(loss).backward()

            # unscale
            scaler.unscale_(optimizer)  # once
            # clip
            norm = clip_grad_norm_(model.parameters(), 1.0)
            log(norm)
            scaler.step(optimizer)
        """,
        "safe",
        "move unscale_",
    )


def test_late_unscale_moves_up_past_guards() -> None:
    compare(
        unscaled,
        """
        scaler.scale(loss).backward()
        if args.clip: clip_grad_norm_(model.parameters(), args.clip)
        if amp:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        """,
        """
        scaler.scale(loss).backward()
        if amp:
            scaler.unscale_(optimizer)
        if args.clip: clip_grad_norm_(model.parameters(), args.clip)
        scaler.step(optimizer)
        """,
        "safe",
    )


def test_late_unscale_moves_out_of_the_guard_of_the_step() -> None:
    edit = compare(
        unscaled,
        """
        if amp:
            scaler.scale(loss).backward()
        else:
            loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        if amp:
            # needed
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
        else:
            optimizer.step()
        """,
        """
        if amp:
            scaler.scale(loss).backward()
        else:
            loss.backward()
        if amp:
            # needed
            scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        if amp:
            scaler.step(optimizer)
        else:
            optimizer.step()
        """,
        "unsafe",
    )
    assert edit.line_map[7] == 8


def test_late_unscale_moves_out_of_another_function() -> None:
    compare(
        unscaled,
        """
        class Trainer:
            def update(self):
                scaler.unscale_(optimizer)
                scaler.step(optimizer)

            def train_step(self, loss):
                scaler.scale(loss).backward()
                if self.clip:
                    clip_grad_norm_(model.parameters(), self.clip)
                self.update()
        """,
        """
        class Trainer:
            def update(self):
                scaler.step(optimizer)

            def train_step(self, loss):
                scaler.scale(loss).backward()
                if self.clip:
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(model.parameters(), self.clip)
                self.update()
        """,
        "unsafe",
    )


def test_late_unscale_on_the_same_line() -> None:
    edit = unscaled(f"if c: {CLIP}; scaler.unscale_(optimizer)\n")
    assert edit is not None
    assert edit.new_text == f"if c: scaler.unscale_(optimizer); {CLIP}\n"
    assert edit.line_map == {1: 1}


@pytest.mark.parametrize(
    "text",
    [
        f"while {CLIP} > 5:\n    a()\n",
        f"if a:\n    b()\nelif {CLIP} > 5:\n    a()\n",
        f"f = lambda: {CLIP}\n",
        f"scaler.unscale_(optimizer)\n{CLIP}\n",
        f"scaler.unscale_(optimizer); a(); {CLIP}\n",
        f"{CLIP}\noptimizer = other()\nscaler.unscale_(optimizer)\n",
        f"with autocast():\n    loss.backward()\n    {CLIP}\nscaler.unscale_(optimizer)\n",
        f"for o in os:\n    {CLIP}\n    if a:\n        continue\n    scaler.unscale_(optimizer)\n",
        f"{CLIP}\nif a:\n    b()\n    if c:\n        scaler.unscale_(optimizer)\n",
        f"{CLIP}\nif a:\n    if c: scaler.unscale_(optimizer)\n    scaler.step(optimizer)\n",
        f"def f(): scaler.unscale_(optimizer)\n{CLIP}\nf()\n",
        f"def f():\n    scaler.unscale_(optimizer)\n{CLIP}\nf()\n",
    ],
)
def test_unscale_is_refused(text: str) -> None:
    assert unscaled(text) is None


# -- a condition


def under(text: str) -> SourceEdit | None:
    return put_under(text, calls(text, "clip_grad_norm_")[0], "accelerator.sync_gradients")


def test_under_the_condition_of_the_wrapper() -> None:
    edit = compare(
        under,
        """
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss)

                # clip
                norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
                accelerator.log({"norm": norm})
                optimizer.step()
        """,
        """
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss)

                if accelerator.sync_gradients:
                    # clip
                    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    accelerator.log({"norm": norm})
                optimizer.step()
        """,
        "unsafe",
        "only if accelerator.sync_gradients",
    )
    assert [edit.line_map[line] for line in (7, 8, 9)] == [6, 7, 8]


def test_under_two_conditions() -> None:
    compare(
        under,
        """
        if args.clip: accelerator.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        """,
        """
        if accelerator.sync_gradients:
            if args.clip: accelerator.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        """,
        "unsafe",
    )


@pytest.mark.parametrize("text", [f"a(); {CLIP}\n", f"x = f({CLIP})\n", f"n = {CLIP}\na()\nlog(n)\n"])
def test_no_condition(text: str) -> None:
    assert under(text) is None
