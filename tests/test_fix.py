"""Edits of a source text, and the move of a clip to after its backward."""

from __future__ import annotations

import ast
import random
import textwrap

import pytest

from gradlint.fix import apply, apply_fixes, edits, move_after
from gradlint.rule import Edit, Location, SourceEdit

CLIP = "clip_grad_norm_(model.parameters(), 1.0)"


def place(text: str, call: str) -> list[Location]:
    """Every place of a call in a text."""
    found = []
    start = text.find(call)
    while start >= 0:
        line = text.count("\n", 0, start) + 1
        column = start - (text.rfind("\n", 0, start) + 1) + 1
        found.append(Location(line, column, line, column + len(call)))
        start = text.find(call, start + 1)
    return found


def moved(text: str, scaled: bool = False, call: str = CLIP) -> SourceEdit | None:
    """The clip moved behind every ``.backward()`` and ahead of every ``.step(...)`` of the text."""
    tree = ast.parse(text)
    ends: dict[str, list[Location]] = {"backward": [], "step": []}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ends:
            if node.func.attr == "step" and not ast.unparse(node.func.value).startswith(("opt", "scaler")):
                continue
            end = node.end_col_offset or 0
            ends[node.func.attr].append(Location(node.lineno, node.col_offset + 1, node.end_lineno or 0, end + 1))
    return move_after(text, place(text, call)[0], ends["backward"], ends["step"], scaled)


def check(before: str, after: str, applicability: str = "safe", scaled: bool = False) -> SourceEdit:
    before, after = textwrap.dedent(before).lstrip("\n"), textwrap.dedent(after).lstrip("\n")
    edit = moved(before, scaled)
    assert edit is not None
    assert edit.new_text == after
    assert edit.applicability == applicability
    assert apply(before, edits(before, after)) == after
    old, new = before.split("\n"), after.split("\n")
    assert all(new[n - 1].strip() in old[o - 1] for n, o in edit.line_map.items())
    return edit


def refused(text: str, scaled: bool = False) -> None:
    assert moved(textwrap.dedent(text).lstrip("\n"), scaled) is None


# -- the move


def test_straight_line() -> None:
    edit = check(
        """
        for x, y in loader:
            loss = criterion(model(x), y)
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
        """
        for x, y in loader:
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        """,
    )
    assert edit.line_map[5] == 3


def test_comments_and_blank_lines() -> None:
    check(
        """
        loss = f()

        # clip the gradients
        clip_grad_norm_(model.parameters(), 1.0)  # noqa: E501

        # backward
        loss.backward()

        opt.step()
        """,
        """
        loss = f()

        # backward
        loss.backward()
        # clip the gradients
        clip_grad_norm_(model.parameters(), 1.0)  # noqa: E501

        opt.step()
        """,
    )


def test_the_result_goes_along() -> None:
    check(
        """
        for x in loader:
            norm = clip_grad_norm_(model.parameters(), 1.0)
            opt.zero_grad()
            writer.add_scalar("norm", norm, n)
            loss = model(x)
            if n % 10 == 0:
                print(norm.item())
            loss.backward()
            opt.step()
        """,
        """
        for x in loader:
            opt.zero_grad()
            loss = model(x)
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), 1.0)
            writer.add_scalar("norm", norm, n)
            if n % 10 == 0:
                print(norm.item())
            opt.step()
        """,
    )


@pytest.mark.parametrize(
    "statement", ["norm = {}.item()", "norm = float({})", "total: float = {}", "norms[i] = {}", "a = b = {}"]
)
def test_results_that_are_kept(statement: str) -> None:
    text = f"{statement.format(CLIP)}\nloss.backward()\nopt.step()\n"
    edit = moved(text)
    assert edit is not None
    assert edit.new_text == f"loss.backward()\n{statement.format(CLIP)}\nopt.step()\n"


def test_guard_moves_with_the_call() -> None:
    check(
        """
        for x in loader:
            if args.clip > 0:
                # avoid explosions
                norm = clip_grad_norm_(model.parameters(), 1.0)
                log(norm)
            loss.backward()
            opt.step()
        """,
        """
        for x in loader:
            loss.backward()
            if args.clip > 0:
                # avoid explosions
                norm = clip_grad_norm_(model.parameters(), 1.0)
                log(norm)
            opt.step()
        """,
    )


def test_one_line_guard_tabs_and_semicolons() -> None:
    text = "for x in d:\n\tif c: clip_grad_norm_(model.parameters(), 1.0)\n\tm.train(); opt.zero_grad()\n"
    edit = moved(text + "\tf(x).backward()\n\topt.step()\n")
    assert edit is not None
    assert edit.new_text.splitlines()[1:] == [
        "\tm.train(); opt.zero_grad()",
        "\tf(x).backward()",
        "\tif c: clip_grad_norm_(model.parameters(), 1.0)",
        "\topt.step()",
    ]


def test_a_line_of_several_statements_is_split() -> None:
    check(
        """
        clip_grad_norm_(model.parameters(), 1.0); opt.zero_grad()
        loss.backward()
        opt.step()
        """,
        """
        opt.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        """,
    )


def test_carriage_returns_and_missing_final_newline_stay() -> None:
    text = "clip_grad_norm_(model.parameters(), 1.0)\r\nloss.backward()\r\nopt.step()"
    edit = moved(text)
    assert edit is not None
    assert edit.new_text == "loss.backward()\r\nclip_grad_norm_(model.parameters(), 1.0)\r\nopt.step()"


def test_calls_over_several_lines_and_wide_characters() -> None:
    text = "for x in d:\n    é = 'ü'; norm = (clip(\n        model.parameters(),  # ß\n        1.0,\n    ))\n"
    text += "    f(x).backward()\n    opt.step()\n"
    call = Location(2, 22, 5, 6)
    edit = move_after(text, call, place(text, "f(x).backward()"), place(text, "opt.step()"))
    assert edit is not None
    assert edit.new_text == (
        "for x in d:\n    é = 'ü'\n    f(x).backward()\n"
        "    norm = (clip(\n        model.parameters(),  # ß\n        1.0,\n    ))\n    opt.step()\n"
    )
    assert edit.line_map[4] == 2


def test_behind_the_block_that_holds_the_backward() -> None:
    check(
        """
        clip_grad_norm_(model.parameters(), 1.0)
        with amp.scale_loss(loss, opt) as scaled_loss:
            scaled_loss.backward()
        opt.step()
        """,
        """
        with amp.scale_loss(loss, opt) as scaled_loss:
            scaled_loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        """,
    )


def test_behind_unscale() -> None:
    check(
        """
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        """,
        """
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()
        """,
        applicability="unsafe",
        scaled=True,
    )


def test_unscale_is_written_where_it_is_missing() -> None:
    check(
        """
        clip_grad_norm_(model.parameters(), 1.0)
        if amp:
            scaler.scale(loss).backward()
            scaler.step(self.opt)
        else:
            loss.backward()
            opt.step()
        """,
        """
        if amp:
            scaler.scale(loss).backward()
            scaler.unscale_(self.opt)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(self.opt)
        else:
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
        """,
        applicability="unsafe",
        scaled=True,
    )


def test_into_the_guard_of_an_accumulated_step() -> None:
    check(
        """
        for i, x in enumerate(d):
            clip_grad_norm_(model.parameters(), 1.0)
            f(x).backward()
            if i % 4 == 3:
                opt.step()
                opt.zero_grad()
        """,
        """
        for i, x in enumerate(d):
            f(x).backward()
            if i % 4 == 3:
                clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                opt.zero_grad()
        """,
        applicability="unsafe",
    )


def test_before_a_step_in_every_branch() -> None:
    check(
        """
        clip_grad_norm_(model.parameters(), 1.0)
        loss.backward()
        if first:
            opt.step()
        else:
            opt2.step()
        """,
        """
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        if first:
            opt.step()
        else:
            opt2.step()
        """,
    )


@pytest.mark.parametrize(
    "between",
    [
        "model = other()",  # the name it reads means something else
        "model, y = other()",
        "for model in models: pass",
        "import model",
        "if bad: return",
        "if bad: raise E",
        "x = yield 1",
        "sys.exit(1)",
        "loss = loss + norm",  # carried along, it would change the loss
        "norm = 0",
    ],
)
def test_what_it_does_not_cross(between: str) -> None:
    refused(f"def f():\n    norm = {CLIP}\n    {between}\n    loss.backward()\n    opt.step()\n")


def test_continue_is_crossed_only_inside_its_own_loop() -> None:
    refused(f"for x in d:\n    {CLIP}\n    if bad: continue\n    loss.backward()\n    opt.step()\n")
    inner = (
        f"for x in d:\n    {CLIP}\n    for y in x:\n        if y: continue\n        f(y).backward()\n    opt.step()\n"
    )
    assert moved(inner) is not None


@pytest.mark.parametrize(
    "text",
    [
        f"print({CLIP})\nloss.backward()\nopt.step()\n",
        f"x = g({CLIP})\nloss.backward()\nopt.step()\n",
        f"if a:\n    {CLIP}\n    h()\nloss.backward()\nopt.step()\n",
        f"if a:\n    h()\nelse:\n    {CLIP}\nloss.backward()\nopt.step()\n",
        f"while a:\n    {CLIP}\nloss.backward()\nopt.step()\n",
        f"{CLIP}; loss.backward(); opt.step()\n",
        f"{CLIP}\nloss.backward(); opt.step()\n",
        f"norm = {CLIP}\nloss.backward()\nif a:\n    opt.step()\nprint(norm)\n",
    ],
)
def test_what_it_does_not_take_apart(text: str) -> None:
    refused(text)


def test_scaled_gradients_without_a_plain_step_are_refused() -> None:
    refused(f"{CLIP}\nscaler.scale(loss).backward()\nscaler.step(opts[0])\n", scaled=True)


@pytest.mark.parametrize("between", ["p.grad.mul_(2)", "reducer.synchronize()", "opt_b.step()"])
def test_unsafe_where_gradients_are_touched_on_the_way(between: str) -> None:
    text = f"{CLIP}\n{between}\nloss.backward()\nopt.step()\n"
    backward = place(text, "loss.backward()")
    edit = move_after(text, place(text, CLIP)[0], backward, place(text, "opt.step()"))
    assert edit is not None
    assert edit.applicability == "unsafe"


def test_text_that_does_not_parse_is_refused() -> None:
    assert move_after("print 'x'\n", Location(1, 1, 1, 2), [], []) is None


# -- edits


def test_edits_as_the_interface_has_them() -> None:
    old = "a\nclip\nzero\nback\nstep\n"
    new = "a\nzero\nback\nclip\nstep\n"
    assert edits(old, new) == (Edit(2, 1, 3, 1, ""), Edit(5, 1, 5, 1, "clip\n"))
    assert edits("clip\nback\nstep\n", "back\nclip\nstep\n") == (Edit(1, 1, 2, 1, ""), Edit(3, 1, 3, 1, "clip\n"))
    assert edits(old, old) == ()


def test_edits_turn_one_text_into_the_other() -> None:
    chance = random.Random(0)
    for _ in range(500):
        texts = []
        for _ in range(2):
            ends = [chance.choice(["\n", "\r\n"]) for _ in range(chance.randint(0, 7))]
            text = "".join(chance.choice("abc\x0c") + end for end in ends)
            texts.append(text.rstrip("\r\n") if chance.random() < 0.3 else text)
        assert apply(texts[0], edits(*texts)) == texts[1]


def test_apply_rejects_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="overlap"):
        apply("a\nb\n", [Edit(1, 1, 2, 1, ""), Edit(1, 1, 3, 1, "")])
    with pytest.raises(ValueError, match="no line 9"):
        apply("a\n", [Edit(9, 1, 9, 1, "x")])


def test_overlapping_fixes_are_applied_one_at_a_time() -> None:
    first = (Edit(1, 1, 2, 1, ""), Edit(3, 1, 3, 1, "A\n"))
    second = (Edit(2, 1, 3, 1, ""), Edit(3, 1, 3, 1, "B\n"))
    third = (Edit(4, 1, 5, 1, "D\n"),)
    text, applied = apply_fixes("a\nb\nc\nd\n", [first, second, third])
    assert applied == (0, 2)
    assert text == "b\nA\nc\nD\n"
