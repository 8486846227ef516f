"""What the tests of source edits share: calls found by what they call, and an edit compared with a whole text."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable

from gradlint.facts.steps_events import Lines
from gradlint.fix import apply, edits
from gradlint.rule import Location, SourceEdit

Make = Callable[[str], SourceEdit | None]


def calls(text: str, *names: str) -> list[Location]:
    """The places, in the order of the text, of calls whose name ends with one of these; of an assignment likewise."""
    lines = Lines(text)
    found = []
    for node in ast.walk(ast.parse(text)):
        code = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Assign):
            code = ast.unparse(node.targets[0])
        if isinstance(node, (ast.Call, ast.Assign)) and code.endswith(names):
            found.append(lines.location(node))
    return sorted(found)


def steps(text: str) -> list[Location]:
    """The optimizer steps of a text."""
    return [place for place in calls(text, ".step") if "sched" not in text.split("\n")[place.line - 1]]


def plain(text: str) -> str:
    """A program as it is written in a test."""
    return textwrap.dedent(text).lstrip("\n")


def compare(make: Make, before: str, after: str, applicability: str, description: str = "") -> SourceEdit:
    """The edit gives the second text; a second time there is nothing to do; lines lead back to where they were."""
    before, after = plain(before), plain(after)
    edit = make(before)
    assert edit is not None
    assert edit.new_text == after
    assert edit.applicability == applicability
    assert description in edit.description
    assert apply(before, edits(before, after)) == after
    assert make(after) is None
    old, new = before.split("\n"), after.split("\n")
    for line, origin in edit.line_map.items():
        assert _statements(new[line - 1]) & _statements(old[origin - 1]) or new[line - 1] == old[origin - 1]
    return edit


def _statements(line: str) -> set[str]:
    """The statements on a line."""
    return {part.strip() for part in re.split(r";|: ", line.partition("#")[0])} - {""}
