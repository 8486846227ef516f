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


@pytest.mark.xdist_group("fixtures")
@pytest.mark.parametrize("program", PROGRAMS)
def test_fixture(program: str, found: Mapping[str, set[Expectation]]) -> None:
    assert found.get(program, set()) == expected(FIXTURES / program)


def test_there_are_programs_of_both_kinds() -> None:
    assert sum(p.startswith("wrong") for p in PROGRAMS) >= 20
    assert sum(p.startswith("right") for p in PROGRAMS) >= 20
