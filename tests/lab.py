"""Running single rules on small programs, with the experiment in reach: what the meta-test is made of."""

from __future__ import annotations

import ast
import copy
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradlint.analysis import Analyst
from gradlint.facts import FileFacts
from gradlint.facts.index import ProjectIndex
from gradlint.probe.client import ProbeClient, Request
from gradlint.probe.requests import Prepared, Unsliced, prepare
from gradlint.registry import load
from gradlint.rule import Candidate, Judgement, Measurement, Rule


class Lab:
    """One worker for many programs. ``folder`` is where programs are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rules: Mapping[str, Rule] = load()
        self.client = ProbeClient(sys.executable, timeout=20.0, budget=3600.0, jobs=1)
        self._count = 0

    def close(self) -> None:
        """End the worker."""
        self.client.close()

    def facts(self, text: str) -> tuple[FileFacts, ProjectIndex]:
        """Write ``text`` to a folder of its own and read it."""
        self._count += 1
        folder = self.folder / f"program{self._count}"
        folder.mkdir()
        path = os.fspath(folder / "train.py")
        Path(path).write_text(text, encoding="utf-8")
        index = ProjectIndex([path])
        analyst = Analyst(index, self.rules, frozenset(self.rules), {}, probing=True)
        return analyst.facts(path, text, ast.parse(text), []), index

    def suspects(self, rule: Rule, text: str) -> list[tuple[Candidate, Prepared | Unsliced | None]]:
        """What ``check`` proposes, with its experiment."""
        facts, index = self.facts(text)
        return [(c, prepare(index, c, ())) for c in rule.check(facts)]

    def places(self, rule: Rule, text: str) -> list[tuple[Candidate, Prepared | Unsliced | None]]:
        """Every place the rule could speak of, past its ``check``."""
        facts, index = self.facts(text)
        return [(c, prepare(index, c, ())) for c in rule.places(facts)]

    def verdict(self, rule: Rule, pair: tuple[Candidate, Prepared | Unsliced | None], **controls: Any) -> Judgement:
        """Run the experiment (with ``controls`` of the worker) and judge it."""
        candidate, prepared = pair
        if not isinstance(prepared, Prepared):
            reason, detail = (prepared.reason, prepared.detail) if prepared else ("not-sliced", "")
            return rule.judge(candidate, Measurement(None, reason, detail))
        body = copy.deepcopy(dict(prepared.body))
        if controls.pop("identity_edit", False):
            entry = next(m["source"] for m in body["modules"] if m["name"] == body["entry"])
            body["edited"] = {"source": entry, "lines": body["lines"]}
        body["controls"] = controls
        got: dict[str, Measurement] = {}
        self.client.run_all([Request("x", prepared.kind, body)], got.__setitem__)
        return rule.judge(candidate, got["x"])


def programs(rules: Mapping[str, Rule]) -> Iterator[tuple[str, str, str]]:
    """Code, bad example and good example of each rule's page."""
    from gradlint.registry import read_page

    for code, rule in rules.items():
        sections = read_page(rule.page).sections
        yield code, _block(sections["Example"]), _block(sections["Use instead"])


def _block(section: str) -> str:
    return section.split("```python\n", 1)[1].split("```", 1)[0]
