"""Settings: the command line over ``[tool.gradlint]`` over the user's own ``gradlint.toml``.

What the linted project supplies is not trusted: its ``python``, its ``rules`` and a ``.venv`` beside its
configuration name code that gradlint would run, so they are used only with ``--trust-project``.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gradlint.errors import UsageProblem
from gradlint.result import FailOn
from gradlint.rule import Rule
from gradlint.selection import Layer, choose, expand

T = TypeVar("T")
Shape = tuple[int, ...]

PROBE_TIMEOUT = 5.0
"""CPU seconds for one experiment."""
PROBE_BUDGET = 300.0
"""Seconds for all experiments of a run."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One configuration file, checked and typed. ``None`` and ``()`` where it says nothing."""

    path: str = ""
    root: str = ""
    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    exclude: tuple[str, ...] | None = None
    extend_exclude: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    python: str | None = None
    rules: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[Shape, ...]] = dataclasses.field(default_factory=dict)
    fail_on: FailOn | None = None
    probe: bool | None = None
    probe_timeout: float | None = None
    probe_budget: float | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line said. ``None`` and ``()``: nothing."""

    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    python: str | None = None
    trust_project: bool = False
    fail_on: FailOn | None = None
    probe: bool | None = None
    probe_timeout: float | None = None
    probe_budget: float | None = None
    jobs: int | None = None
    cache: bool = True
    show_refuted: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run depends on besides the sources themselves."""

    selected: frozenset[str]
    """Codes of the rules to run."""
    root: str = ""
    """The folder that ``exclude`` and ``per_file_ignores`` are relative to."""
    exclude: tuple[str, ...] | None = None
    """Patterns as in a .gitignore; ``None`` for the built-in ones."""
    extend_exclude: tuple[str, ...] = ()
    per_file_ignores: tuple[tuple[str, frozenset[str]], ...] = ()
    """Pattern as in a .gitignore, and the codes that it silences."""
    rules: tuple[str, ...] = ()
    """Files or folders of the user's own rules, absolute, trusted."""
    inputs: Mapping[str, tuple[Shape, ...]] = dataclasses.field(default_factory=dict)
    """Class name to the shapes of its forward's arguments."""
    python: str | None = None
    """The interpreter for the probe that was asked for by ``--python`` or a trusted configuration."""
    venv_python: str | None = None
    """The interpreter of a ``.venv`` beside the configuration, if the project is trusted: the last one to try."""
    untrusted_venv: str | None = None
    """That interpreter if the project is not trusted: never run, only worth a remark where no torch was found."""
    trust_project: bool = False
    probe: bool = True
    probe_timeout: float = PROBE_TIMEOUT
    probe_budget: float = PROBE_BUDGET
    jobs: int = 1
    cache: bool = True
    fail_on: FailOn = "any"
    show_refuted: bool = False
    notes: tuple[str, ...] = ()
    """One-line remarks about the configuration, for stderr."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """The configuration files of a run, and which of the code they name may be run."""

    user: Config
    project: Config
    trust_project: bool

    @property
    def rules(self) -> tuple[str, ...]:
        """Paths of the user's own rule files that may be loaded."""
        return self.user.rules + (self.project.rules if self.trust_project else ())


def read_all(paths: Sequence[str], *, trust_project: bool = False, user_file: Path | None = None) -> Sources:
    """Read the user's configuration and the project's, which is looked for upwards from ``paths``.

    Raises :class:`UsageProblem` for a file that is not TOML or holds a wrong key or type.
    """
    user_path = user_config_path() if user_file is None else user_file
    user = read_config(user_path, table=()) if user_path.is_file() else Config()
    found = find_project_config(paths)
    project = read_config(found, table=("tool", "gradlint")) if found else Config()
    return Sources(user, project, trust_project)


def user_config_path() -> Path:
    """Where the user's own configuration is looked for."""
    import platformdirs

    return Path(platformdirs.user_config_dir("gradlint", appauthor=False)) / "gradlint.toml"


def find_project_config(paths: Sequence[str]) -> Path | None:
    """The nearest ``pyproject.toml`` with a ``[tool.gradlint]``, upwards from what ``paths`` have in common.

    The search ends at the top of a repository. Raises :class:`UsageProblem` for a file that is not TOML.
    """
    for folder in _upwards(paths):
        candidate = folder / "pyproject.toml"
        if candidate.is_file():
            tool = _toml(candidate).get("tool")
            if isinstance(tool, dict) and "gradlint" in tool:
                return candidate
        if (folder / ".git").exists() or (folder / ".hg").exists():
            return None
    return None


def read_config(path: Path, table: tuple[str, ...]) -> Config:
    """Read ``path`` and check every key of ``table``. Raises :class:`UsageProblem`."""
    data: Any = _toml(path)
    for key in table:
        data = data.get(key, {})
    name = _shown(path)
    where = f"{name}: [{'.'.join(table)}]" if table else name
    if not isinstance(data, dict):
        raise UsageProblem(f"{where} must be a table")
    fields: dict[str, Any] = {}
    for key, value in data.items():
        reader = _KEYS.get(key)
        if reader is None:
            raise UsageProblem(f"{where}: unknown key {key!r}: {_closest(key)}")
        try:
            fields[key.replace("-", "_")] = reader(value)
        except ValueError as problem:
            raise UsageProblem(f"{where}: {key} must be {problem}") from None
    root = path.resolve().parent
    for key in ("python", "rules"):
        if key in fields:
            fields[key] = _anchored(fields[key], root)
    return Config(path=name, root=str(root), **fields)


def settle(sources: Sources, options: Options, rules: Mapping[str, Rule]) -> Settings:
    """Lay the command line over the project's configuration over the user's.

    Raises :class:`UsageProblem` for a selector that names no rule, or an interpreter that is none.
    """
    user, project = sources.user, sources.project
    layers = [_layer(user), _layer(project)]
    layers.append(Layer(options.select, options.extend_select, options.ignore))
    ignores = {**user.per_file_ignores, **project.per_file_ignores}
    venv = _venv_python(project)
    return Settings(
        selected=choose(layers, rules),
        root=project.root or os.getcwd(),
        exclude=_first(project.exclude, user.exclude),
        extend_exclude=user.extend_exclude + project.extend_exclude,
        per_file_ignores=tuple((glob, expand(codes, rules, project.path)) for glob, codes in ignores.items()),
        rules=sources.rules,
        inputs={**user.inputs, **project.inputs},
        python=_python(sources, options),
        venv_python=venv if sources.trust_project else None,
        untrusted_venv=None if sources.trust_project else venv,
        trust_project=sources.trust_project,
        probe=_or(True, options.probe, project.probe, user.probe),
        probe_timeout=_or(PROBE_TIMEOUT, options.probe_timeout, project.probe_timeout, user.probe_timeout),
        probe_budget=_or(PROBE_BUDGET, options.probe_budget, project.probe_budget, user.probe_budget),
        jobs=options.jobs or _processors(),
        cache=options.cache,
        fail_on=_or("any", options.fail_on, project.fail_on, user.fail_on),
        show_refuted=options.show_refuted,
        notes=_untrusted(sources),
    )


def check_rule_paths(paths: Sequence[str]) -> None:
    """Raise :class:`UsageProblem` for a path of ``rules = [...]`` that does not exist."""
    for path in paths:
        if not os.path.exists(path):
            raise UsageProblem(f"{path}: no such rule file or folder: mend `rules` in the configuration")


def _layer(config: Config) -> Layer:
    return Layer(config.select, config.extend_select, config.ignore, config.path)


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _or(default: T, *values: T | None) -> T:
    chosen = _first(*values)
    return default if chosen is None else chosen


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _python(sources: Sources, options: Options) -> str | None:
    trusted = sources.project.python if sources.trust_project else None
    chosen, where = options.python, "--python"
    if chosen is None:
        chosen, where = (trusted, sources.project.path) if trusted else (sources.user.python, sources.user.path)
    if chosen is None:
        return None
    path = os.path.abspath(os.path.expanduser(chosen))
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise UsageProblem(f"{where}: {chosen} is not a Python interpreter: give the path of one that has torch")
    return path


def _venv_python(project: Config) -> str | None:
    if not project.root:
        return None
    tail = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    path = os.path.join(project.root, ".venv", *tail)
    return path if os.path.isfile(path) else None


def _untrusted(sources: Sources) -> tuple[str, ...]:
    if sources.trust_project:
        return ()
    named = [key for key in ("python", "rules") if getattr(sources.project, key)]
    if not named:
        return ()
    keys = " and ".join(f"`{key}`" for key in named)
    return (f"{sources.project.path}: {keys} would run the project's own code and is left out: use --trust-project",)


def _upwards(paths: Sequence[str]) -> list[Path]:
    folders = [os.path.realpath(path) for path in paths if path != "-"] or [os.getcwd()]
    folders = [path if os.path.isdir(path) else os.path.dirname(path) for path in folders]
    try:
        start = Path(os.path.commonpath(folders))
    except ValueError:  # different drives
        start = Path(folders[0])
    return [start, *start.parents]


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageProblem(f"{_shown(path)}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageProblem(f"{_shown(path)}: not valid TOML: {error}") from None


def _shown(path: Path) -> str:
    """As a person would write it: relative where it lies under the working directory."""
    return str(path.relative_to(os.getcwd())) if path.is_relative_to(os.getcwd()) else str(path)


def _anchored(value: str | tuple[str, ...], root: Path) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return os.path.join(root, os.path.expanduser(value))
    return tuple(os.path.join(root, os.path.expanduser(entry)) for entry in value)


def _closest(key: str) -> str:
    import difflib

    close = difflib.get_close_matches(key.replace("_", "-"), _KEYS, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(sorted(_KEYS))}"


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError('a list of strings, like ["GL101"]')
    return tuple(value)


def _string(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a string")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError("a number of seconds above 0")
    return float(value)


def _fail_on(value: object) -> FailOn:
    if value not in ("any", "confirmed"):
        raise ValueError('"any" or "confirmed"')
    return value


def _ignores(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ValueError('a table of lists, like {"tests/*" = ["GL301"]}')
    return {glob: _strings(codes) for glob, codes in value.items()}


def _inputs(value: object) -> dict[str, tuple[Shape, ...]]:
    if not isinstance(value, dict):
        raise ValueError("a table of shapes, like {Net = [[32, 10]]}")
    return {name: _shapes(shapes) for name, shapes in value.items()}


def _shapes(value: object) -> tuple[Shape, ...]:
    """``[[32, 10], [32, 4]]``, or ``[32, 10]`` for a single argument."""
    rows = [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise ValueError("a table of shapes, like {Net = [[32, 10]]}")
    for size in (size for row in rows for size in row):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError("a table of shapes of whole numbers above 0, like {Net = [[32, 10]]}")
    return tuple(tuple(row) for row in rows)


_KEYS: dict[str, Callable[[object], object]] = {
    "select": _strings,
    "ignore": _strings,
    "extend-select": _strings,
    "exclude": _strings,
    "extend-exclude": _strings,
    "per-file-ignores": _ignores,
    "python": _string,
    "rules": _strings,
    "inputs": _inputs,
    "fail-on": _fail_on,
    "probe": _boolean,
    "probe-timeout": _seconds,
    "probe-budget": _seconds,
}
