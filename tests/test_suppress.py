"""Comments that silence findings, and comments that tell shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.rule import Location
from gradlint.sources import Suppressions, read_suppressions

NAMES = {
    "GL001": "syntax-error",
    "GL002": "unused-suppression",
    "GL101": "clip-before-backward",
    "GL201": "deep-sigmoid-stack",
}


def covered(text: str, code: str = "GL101", line: int = 1, end_line: int | None = None) -> bool:
    return read_suppressions(text).covers(code, NAMES[code], Location(line, 1, end_line or line, 5))


@pytest.mark.parametrize(
    "comment",
    [
        "# noqa",
        "#noqa",
        "# NoQA: GL101",
        "# noqa:GL101,GL201",
        "# noqa: E501, GL101",
        "# noqa: GL201 GL101",
        "# noqa: gl101",
        "# type: ignore # noqa: GL101",
        "# gradlint: ignore[GL101] the norm is only logged",
        "# gradlint:ignore[GL201, GL101]",
        "# gradlint: ignore[clip-before-backward]",
        "# gradlint: ignore[GL1]",
        "# gradlint: ignore",
    ],
)
def test_forms_that_silence(comment: str) -> None:
    assert covered(f"clip()  {comment}\n")
    assert not covered(f"clip()  {comment}\nclip()\n", line=2)


@pytest.mark.parametrize(
    "text",
    [
        "clip()  # noqa: E501\n",
        "clip()  # noqa: GL201\n",
        "clip()  # gradlint: ignore[GL201]\n",
        "clip('# noqa')\n",
        "clip('# noqa: GL101')\n",
        "clip('# gradlint: ignore[GL101]')\n",
        "clip()  # nothing about noqas\n",
        "clip()  # gradlint: ignored\n",
        "",
    ],
)
def test_forms_that_do_not(text: str) -> None:
    assert not covered(text)


def test_a_span_is_silenced_on_its_first_or_last_line() -> None:
    assert covered("clip(  # noqa: GL101\n  a,\n)\n", end_line=3)
    assert covered("clip(\n  a,\n)  # noqa: GL101\n", end_line=3)
    assert not covered("clip(\n  a,  # noqa: GL101\n)\n", end_line=3)
    assert read_suppressions("x\n# noqa: GL101\n").comments[0].covers("GL101", "", Location(2, 1, 3, 1))


def test_a_whole_file() -> None:
    text = "# gradlint: ignore-file[GL101]\n\nclip()\n"
    assert covered(text, line=3)
    assert not covered(text, "GL201", line=3)
    assert covered("# gradlint: ignore-file\nclip()\n", "GL201", line=2)


def test_columns_are_those_of_the_comment() -> None:
    comment = read_suppressions("x = 1\nclip()  # why # noqa: GL101\n").comments[0]
    assert (comment.line, comment.column, comment.end_column) == (2, 15, 28)
    bare = read_suppressions("if x:\n    clip()  # noqa\n").comments[0]
    assert (bare.line, bare.column) == (2, 13)


def unused(text: str, *met: tuple[str, int], selected: frozenset[str] = frozenset(NAMES)) -> list[str]:
    candidates = [(code, Location(line, 1, line, 5)) for code, line in met]
    return [u.message for u in read_suppressions(text).unused(candidates, NAMES, selected)]


def test_what_met_nothing_is_unused() -> None:
    assert len(unused("clip()  # noqa: GL101\n")) == 1
    assert unused("clip()  # noqa: GL101\n", ("GL101", 1)) == []
    assert len(unused("clip()  # noqa: GL101\n", ("GL101", 2))) == 1
    assert len(unused("clip()  # noqa: GL101,GL201\n", ("GL101", 1))) == 1
    assert len(unused("# gradlint: ignore-file[GL201]\n")) == 1
    assert len(unused("clip()  # gradlint: ignore\n")) == 1


def test_what_is_never_called_unused() -> None:
    assert unused("clip()  # noqa\n") == []
    assert unused("clip()  # noqa: E501\n") == []
    assert unused("clip()  # noqa: GL101\n", selected=frozenset({"GL201"})) == []
    assert unused("clip()  # noqa: GL002\n") == []
    assert unused("clip()  # gradlint: ignore[syntax-error]\n") == []
    assert unused("'''\nclip()  # gradlint: ignore[GL101]\n'''\n") == []


def test_a_code_that_does_not_exist_is_said_so() -> None:
    assert "GL999" in unused("clip()  # noqa: GL999\n")[0]
    assert "nonsense" in unused("clip()  # gradlint: ignore[nonsense]\n")[0]


def test_input_hints() -> None:
    text = (
        "class A:  # gradlint: input=(32, 10)\n"
        "class B:  # gradlint: input=(32, 10), (32, 4) two (arguments)\n"
        "class C:  # gradlint: input=[[8, 3, 32, 32]]\n"
        "class D:  # gradlint: input=(32, 'x')\n"
        "class E:  # gradlint: input=(32, -1)\n"
        "class F:  # gradlint: input=(32, 10\n"
    )
    assert read_suppressions(text).inputs == {1: ((32, 10),), 2: ((32, 10), (32, 4)), 3: ((8, 3, 32, 32),)}


def test_text_that_cannot_be_split_into_tokens() -> None:
    assert covered("clip()  # noqa: GL101\nx = '''\n")
    assert covered("x = (\nclip()  # noqa: GL101\n", line=2)


def test_nothing_to_read() -> None:
    assert read_suppressions("import torch\n") == Suppressions()


@given(st.text(alphabet="noqa: GL101gradint=[](),'\"#\n \t\\", max_size=60))
def test_no_text_crashes_it(text: str) -> None:
    read_suppressions(text + "# gradlint: input=(1)# noqa: GL101")
    read_suppressions(text + "# noqa")
