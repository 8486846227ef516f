"""The loader of rule files: every ``*.py`` in the rules folder that names a ``RULE``.

Built-in rules and a user's own are loaded by the same code. An installed package has them in
``gradlint/_rules``; a checkout has them in ``rules/`` beside the package, which is only believed if the
``pyproject.toml`` there is gradlint's own (a folder called ``rules`` in ``site-packages`` is somebody else's).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradlint.rule import Rule

HEADINGS = (
    "What it does",
    "Why it matters",
    "Example",
    "Use instead",
    "How it is confirmed",
    "When to ignore it",
    "References",
)
"""The fixed headings of a rule's page, in their order."""

_CODE = re.compile(r"[A-Z]{1,8}[0-9]{3,4}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_OWN_PROJECT = "torch-gradlint"


@dataclasses.dataclass(frozen=True)
class RuleFailure:
    """A rule file that could not be loaded: where, and why, in one line."""

    path: str
    line: int
    message: str


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Rules by code, in order of code, and the files that failed."""

    rules: Mapping[str, Rule]
    failures: tuple[RuleFailure, ...]
    sources: Mapping[str, str]
    """The path of the file each code came from."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A rule's page: the first line of the docstring, and the text under each heading."""

    title: str
    sections: Mapping[str, str]


class _BadRule(Exception):
    """A rule file that runs but does not hold a rule as it should be."""


def load(extra: Sequence[str] = ()) -> dict[str, Rule]:
    """The built-in rules and those of ``extra`` (files or folders), by code. Failures: see :func:`load_all`."""
    return dict(load_all(tuple(extra)).rules)


@functools.cache
def load_all(extra: tuple[str, ...] = ()) -> Loaded:
    """As :func:`load`, with the files that failed: a broken rule file never takes the others with it."""
    rules: dict[str, Rule] = {}
    sources: dict[str, str] = {}
    failures: list[RuleFailure] = []
    builtin = builtin_folder()
    for path in [*_rule_files(builtin), *(file for entry in extra for file in _rule_files(Path(entry)))]:
        try:
            rule = _load_file(path, builtin=path.parent == builtin)
            _must_be_new(rule, rules, sources)
        except _BadRule as problem:
            failures.append(RuleFailure(str(path), 1, str(problem)))
        except Exception as error:  # a plugin may raise anything; it becomes a finding about that plugin
            failures.append(_failure(path, error))
        else:
            rules[rule.code] = rule
            sources[rule.code] = str(path)
    return Loaded({code: rules[code] for code in sorted(rules)}, tuple(failures), sources)


def builtin_folder() -> Path:
    """The folder of gradlint's own rules.

    Raises ``FileNotFoundError`` if the installation is broken and there is none.
    """
    package = Path(__file__).resolve().parent
    inside = package / "_rules"
    if inside.is_dir():
        return inside
    beside = package.parent / "rules"
    if beside.is_dir() and _is_own_project(package.parent / "pyproject.toml"):
        return beside
    raise FileNotFoundError(f"the rules of gradlint are missing beside {package}: install torch-gradlint again")


def read_page(text: str) -> Page:
    """Split a rule's docstring at its headings, which are lines like ``## What it does``."""
    lines = inspect.cleandoc(text).splitlines()
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    title = lines[0].lstrip("#").strip() if lines else ""
    in_code = False
    for line in lines[1:]:
        in_code ^= line.startswith("```")
        heading = None if in_code else _heading(line)
        if heading is not None:
            current = sections.setdefault(heading, [])
        elif current is not None:
            current.append(line)
    return Page(title, {name: "\n".join(body).strip("\n") for name, body in sections.items()})


def _heading(line: str) -> str | None:
    bare = line.removeprefix("## ").strip()
    return bare if bare in HEADINGS and line.startswith("## ") else None


def _is_own_project(pyproject: Path) -> bool:
    import tomllib

    try:
        data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    project = data.get("project")
    return isinstance(project, dict) and project.get("name") == _OWN_PROJECT


def _rule_files(entry: Path) -> list[Path]:
    if entry.is_dir():
        return sorted(path for path in entry.glob("*.py") if not path.name.startswith("_"))
    return [entry]


def _load_file(path: Path, *, builtin: bool) -> Rule:
    stem = re.sub(r"\W", "_", path.stem)
    marker = "" if builtin else "_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"gradlint_rules.{stem}{marker}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _BadRule("a rule file must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    rule = getattr(module, "RULE", None)
    if not isinstance(rule, Rule):
        raise _BadRule("it must set RULE to a gradlint.rule.Rule")
    if not _CODE.fullmatch(rule.code):
        raise _BadRule(f"the code {rule.code!r} must be capital letters and three or four digits, like GL101")
    if not _NAME.fullmatch(rule.name):
        raise _BadRule(f"the name {rule.name!r} must be kebab-case, like clip-before-backward")
    page = rule.page or inspect.cleandoc(module.__doc__ or "")
    return dataclasses.replace(rule, page=page)


def _must_be_new(rule: Rule, rules: Mapping[str, Rule], sources: Mapping[str, str]) -> None:
    for other in rules.values():
        if rule.code == other.code or rule.name == other.name:
            taken = rule.code if rule.code == other.code else rule.name
            raise _BadRule(f"{taken} is already taken by {sources[other.code]}")


def _failure(path: Path, error: Exception) -> RuleFailure:
    line = 1
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno or 1
    else:
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = (inside[-1] or 1) if inside else 1
    text = " ".join(str(error).split())[:200]
    return RuleFailure(str(path), line, f"{type(error).__name__}: {text}" if text else type(error).__name__)
