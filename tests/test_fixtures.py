"""The programs in ``fixtures/``: what is expected stands beside the line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from gradlint.config import Settings
from gradlint.engine import run
from gradlint.registry import load
from gradlint.result import listed

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
EXPECT = re.compile(r"#\s*expect:\s*(?P<what>[^#]*)")

Expectation = tuple[str, int, str, str]


def expected(path: Path) -> set[Expectation]:
    """File name, line, code and verdict of each ``# expect: GL101 confirmed, GL201 confirmed``."""
    found: set[Expectation] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = EXPECT.search(line)
        for item in match["what"].split(",") if match else ():
            code, verdict = item.split()
            found.add((path.name, number, code, verdict))
    return found


@pytest.fixture(scope="module")
def found() -> Mapping[str, set[Expectation]]:
    """One run over all fixtures, as ``gradlint fixtures/`` does it."""
    settings = Settings(selected=frozenset(load()), root=str(FIXTURES), jobs=2)
    result = run([str(FIXTURES)], settings)
    assert result.probe.available, result.notes
    assert not result.crashed
    by_file: dict[str, set[Expectation]] = {}
    for f in listed(result):
        path = Path(f.path)
        by_file.setdefault(str(path.relative_to(FIXTURES)), set()).add(
            (path.name, f.location.line, f.code, f.judgement.verdict)
        )
    return by_file


PROGRAMS = sorted(str(p.relative_to(FIXTURES)) for p in FIXTURES.rglob("*.py"))
MISSED = re.compile(r"#\s*missed:\s*(GL\d+)")
"""A fault that gradlint does not find yet, beside its line: recorded, not hidden."""


@pytest.mark.xdist_group("fixtures")
@pytest.mark.parametrize("program", PROGRAMS)
def test_fixture(program: str, found: Mapping[str, set[Expectation]]) -> None:
    assert found.get(program, set()) == expected(FIXTURES / program)


def test_there_are_programs_of_both_kinds() -> None:
    assert sum(p.startswith("wrong") for p in PROGRAMS) >= 90
    assert sum(p.startswith("right") for p in PROGRAMS) >= 90


def test_every_known_miss_says_what_is_missed() -> None:
    folder = FIXTURES / "missed"
    programs = {p.relative_to(folder).parts[0] for p in folder.rglob("*.py")}
    telling = {p.relative_to(folder).parts[0] for p in folder.rglob("*.py") if MISSED.search(p.read_text("utf-8"))}
    assert programs == telling


@pytest.mark.parametrize("code", [f"GL10{n}" for n in range(1, 10)])
def test_each_step_rule_has_programs_of_many_kinds(code: str) -> None:
    telling = [p for p in PROGRAMS if p.startswith("wrong") and f"expect: {code}" in (FIXTURES / p).read_text("utf-8")]
    assert len(telling) >= 8
