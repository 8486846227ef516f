"""Rule files are loaded by path, gradlint's own and a user's by the same code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gradlint import registry
from gradlint.registry import builtin_folder, load, load_all, read_page

GOOD = '''\
"""# house-rule

## What it does
Nothing.

## Example
```python
# References
```
"""
from __future__ import annotations

import dataclasses

from gradlint.rule import Judgement, Rule


@dataclasses.dataclass
class State:
    seen: int = 0


RULE = Rule(
    code="ACME001",
    name="house-rule",
    severity="warning",
    proof="static",
    summary="nothing",
    check=lambda facts: (),
    judge=lambda candidate, measurement: Judgement("refuted"),
    places=lambda facts: (),
    remedy="none: it is a test",
)
'''


def failure(tmp_path: Path, text: str) -> registry.RuleFailure:
    path = tmp_path / "own.py"
    path.write_text(text)
    loaded = load_all((str(path),))
    assert set(loaded.rules) == set(load())
    (only,) = loaded.failures
    assert only.path == str(path)
    assert "\n" not in only.message
    return only


def test_the_built_in_rules_come_with_pages_in_order_of_code() -> None:
    rules = load()
    assert {"GL001", "GL002", "GL003"} <= set(rules)
    assert list(rules) == sorted(rules)
    assert all(rule.page.startswith("#") for rule in rules.values())


def test_a_file_or_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "house.py").write_text(GOOD)
    (tmp_path / "_helper.py").write_text("raise SystemError")
    assert load([str(tmp_path / "house.py")])["ACME001"].name == "house-rule"
    assert "ACME001" in load([str(tmp_path)])
    assert any(name.startswith("gradlint_rules.house_") for name in sys.modules)


def test_a_page_is_split_at_its_headings_but_not_inside_code(tmp_path: Path) -> None:
    (tmp_path / "house.py").write_text(GOOD)
    page = read_page(load([str(tmp_path)])["ACME001"].page)
    assert page.title == "house-rule"
    assert page.sections == {"What it does": "Nothing.", "Example": "```python\n# References\n```"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("x = 1\ndef f(:\n", 2, "SyntaxError"),
        ("x = 1\n\nraise ValueError('no\\nluck')\n", 3, "ValueError: no luck"),
        ("import nothing_of_that_name\n", 1, "ModuleNotFoundError"),
        ("x = 1\n", 1, "RULE"),
        ("RULE = 3\n", 1, "RULE"),
        (GOOD.replace("ACME001", "acme"), 1, "'acme'"),
        (GOOD.replace('name="house-rule"', 'name="House Rule"'), 1, "kebab-case"),
        (GOOD.replace("ACME001", "GL001"), 1, "GL001 is already taken"),
        (GOOD.replace('name="house-rule"', 'name="syntax-error"'), 1, "syntax-error is already taken"),
    ],
)
def test_a_broken_rule_file_costs_only_itself(tmp_path: Path, text: str, line: int, words: str) -> None:
    found = failure(tmp_path, text)
    assert found.line == line
    assert words in found.message


def test_a_folder_called_rules_is_believed_beside_gradlints_own_project_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "gradlint").mkdir()
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "gradlint/registry.py"))
    with pytest.raises(FileNotFoundError):
        builtin_folder()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    with pytest.raises(FileNotFoundError):
        builtin_folder()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "torch-gradlint"\n')
    assert builtin_folder() == (tmp_path / "rules").resolve()
    (tmp_path / "gradlint/_rules").mkdir()
    assert builtin_folder() == (tmp_path / "gradlint/_rules").resolve()
