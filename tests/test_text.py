"""From bytes to text to a syntax tree."""

from __future__ import annotations

import ast
import codecs
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.sources import Problem, SourceFile, decode, parse, read


def source(data: bytes) -> SourceFile:
    result = decode("a.py", data)
    assert isinstance(result, SourceFile)
    return result


def problem(data: bytes) -> Problem:
    result = decode("a.py", data)
    if isinstance(result, SourceFile):
        result = parse(result)  # type: ignore[assignment]
    assert isinstance(result, Problem)
    return result


def test_what_never_mentions_torch_is_passed_over() -> None:
    assert decode("a.py", b"import numpy\n\0\xff") is None
    assert isinstance(decode("a.py", b"import lightning"), SourceFile)
    assert isinstance(decode("a.py", b"from accelerate import Accelerator"), SourceFile)


def test_encodings_by_their_declaration() -> None:
    assert source("# torch \u00e9\n".encode()).text == "# torch \u00e9\n"
    assert source("# -*- coding: latin-1 -*-\n# torch \u00e9\n".encode("latin-1")).text.endswith("torch \u00e9\n")
    marked = source(codecs.BOM_UTF8 + b"import torch\n")
    assert (marked.text, marked.encoding) == ("import torch\n", "utf-8-sig")
    assert source(b"#!x\r# coding: cp1252\r# torch \x80\r").text == "#!x\n# coding: cp1252\n# torch \u20ac\n"


def test_line_ends_are_kept_in_mind() -> None:
    assert source(b"import torch\r\nx = 1\r\n").text == "import torch\nx = 1\n"
    assert source(b"import torch\r\nx = 1\r\n").newline == "\r\n"
    assert source(b"import torch\nx = 1\n").newline == "\n"
    assert source(b"import torch\r").newline == "\r"


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"import torch\ndef f(:\n", 2, "syntax error"),
        (b"import torch\nx = 1\0\n", 2, "NUL"),
        (b"import torch\n\nx = '\xff'\n", 3, "0xff"),
        (b"# coding: nonsense\nimport torch\n", 1, "encoding"),
        (b"# coding: hex\nimport torch\n", 1, "encoding"),
        (codecs.BOM_UTF8 + b"# coding: latin-1\nimport torch\n", 1, "encoding"),
        (b"import torch\nprint 'two'\n", 2, "syntax error"),
        (b"import torch\nif x:\npass\n", 3, "syntax error"),
        (b"import torch\nx = '''\n", 2, "syntax error"),
        (b"import torch\nx = " + b"(" * 500 + b")" * 500, 2, "nested too deep"),
        (b"import torch\nx = " + b"-" * 100_000 + b"1", 1, "nested too deep"),
        (b"import torch\nx = 1" + b" + 1" * 50_000, 1, "nested too deep"),
    ],
)
def test_what_cannot_be_read_is_a_problem_with_its_line(data: bytes, line: int, words: str) -> None:
    found = problem(data)
    assert found.line == line
    assert words in found.message
    assert "\n" not in found.message


def test_nesting_beside_a_syntax_error_cannot_overflow_a_native_stack() -> None:
    assert problem(b"import torch\nprint 'two'\nx = " + b"-" * 200_000 + b"1").line == 2


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python reads it")
def test_syntax_of_a_later_python_is_no_fault() -> None:
    assert parse(source(b"import torch\ntype Pair = tuple[int, int]\n")) is None
    assert parse(source(b"import torch\ndef first[T](x: T) -> T: return x\n")) is None


def test_parse_gives_the_tree_and_no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    assert isinstance(parse(source(b"import torch\nx = '\\d'\n")), ast.Module)
    assert not recwarn.list


def test_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"import torch\r\n")
    assert read(str(path)) == SourceFile(str(path), "import torch\n", "utf-8", "\r\n")
    assert isinstance(read(str(tmp_path / "gone.py")), Problem)
    os.mkfifo(tmp_path / "pipe.py")
    assert read(str(tmp_path / "pipe.py")) is None
    assert read("/dev/null") is None


@given(st.binary(max_size=200))
def test_no_bytes_crash_it(data: bytes) -> None:
    result = decode("a.py", b"torch\n" + data)
    if isinstance(result, SourceFile):
        parse(result)


@given(st.text(alphabet="torch #=()[]'\"\n\r\t:xé\u2028\x0c\\", max_size=80))
def test_no_text_crashes_it(text: str) -> None:
    result = decode("a.py", ("# torch\n" + text).encode())
    assert isinstance(result, SourceFile)
    parsed = parse(result)
    if isinstance(parsed, Problem):
        assert 1 <= parsed.line <= 1 + result.text.count("\n")
