"""Which paths git ignores, and which the settings exclude: patterns as in a ``.gitignore``.

``pathspec`` is imported only where there is a pattern to match.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

DEFAULT_EXCLUDES = frozenset(
    {
        ".bzr",
        ".direnv",
        ".eggs",
        ".git",
        ".hg",
        ".ipynb_checkpoints",
        ".mypy_cache",
        ".nox",
        ".pytest_cache",
        ".ruff_cache",
        ".svn",
        ".tox",
        ".venv",
        "__pycache__",
        "__pypackages__",
        "build",
        "dist",
        "env",
        "node_modules",
        "site-packages",
        "venv",
    }
)
"""Names of folders that are not walked unless given by name; with them every ``*.egg-info``."""


@dataclasses.dataclass(frozen=True)
class Patterns:
    """The patterns of one file or setting, relative to ``base`` (absolute, real)."""

    base: str
    lines: tuple[str, ...]

    def decision(self, path: str, *, is_dir: bool) -> bool | None:
        """``True``: ignored, ``False``: taken back by a negation, ``None``: not spoken of. ``path`` is absolute."""
        if not self.lines or not path.startswith(self.base.rstrip(os.sep) + os.sep):
            return None
        relative = os.path.relpath(path, self.base).replace(os.sep, "/")
        return _compiled(self.lines).check_file(relative + "/" if is_dir else relative).include


def ignored(stack: Sequence[Patterns], path: str, *, is_dir: bool) -> bool:
    """Whether ``path`` is ignored: the last entry of ``stack`` (the deepest file) that speaks of it decides."""
    for patterns in reversed(stack):
        decision = patterns.decision(path, is_dir=is_dir)
        if decision is not None:
            return decision
    return False


def read_patterns(path: str, base: str) -> Patterns | None:
    """The patterns of one ignore file, ``None`` if there is none or it says nothing."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            lines = [line.rstrip("\n") for line in stream]
    except OSError:
        return None  # absent or unreadable: git, too, goes on without it
    said = tuple(line for line in lines if line.strip() and not line.startswith("#"))
    return Patterns(base, said) if said else None


def inherited(folder: str) -> list[Patterns]:
    """What holds above ``folder`` (absolute, real): ``.git/info/exclude`` and the ``.gitignore`` of its parents.

    Patterns that ignore ``folder`` itself are left out: it was asked for by name.
    """
    top = _repository(folder)
    if top is None:
        return []
    found = [read_patterns(os.path.join(_git_folder(top), "info", "exclude"), top)]
    between = os.path.relpath(folder, top).split(os.sep) if folder != top else []
    for depth in range(len(between)):
        parent = os.path.join(top, *between[:depth])
        found.append(read_patterns(os.path.join(parent, ".gitignore"), parent))
    stack = [patterns for patterns in found if patterns is not None]
    ways = [os.path.join(top, *between[: depth + 1]) for depth in range(len(between))]
    return [p for p in stack if not any(p.decision(way, is_dir=True) for way in ways)]


def _repository(folder: str) -> str | None:
    while True:
        if os.path.exists(os.path.join(folder, ".git")):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent


def _git_folder(top: str) -> str:
    """``.git``, or what a ``.git`` file of a worktree or submodule points to."""
    place = os.path.join(top, ".git")
    if os.path.isdir(place):
        return place
    try:
        with open(place, encoding="utf-8", errors="surrogateescape") as stream:
            target = stream.read().removeprefix("gitdir:").strip()
        place = os.path.join(top, target)
        with open(os.path.join(place, "commondir"), encoding="utf-8", errors="surrogateescape") as stream:
            return os.path.join(place, stream.read().strip())
    except OSError:
        return place


@functools.lru_cache(maxsize=256)
def _compiled(lines: tuple[str, ...]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)
