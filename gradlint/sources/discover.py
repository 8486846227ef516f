"""From the paths on the command line to the files to lint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from gradlint.sources.ignore import DEFAULT_EXCLUDES, Patterns, ignored, inherited, read_patterns

OTHER_KINDS = (".ipynb", ".md", ".rst")
"""Files that hold Python among other things: passed over also where they are given by name."""


def discover(
    paths: Sequence[str],
    exclude: Sequence[str] | None = None,
    extend_exclude: Sequence[str] = (),
    *,
    root: str | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """The files to lint, each once, sorted.

    A file that is given is always taken; a folder is searched for ``*.py`` that neither git ignores nor
    ``exclude`` names (patterns as in a ``.gitignore``, relative to ``root``; ``None``: the built-in ones).
    Links to folders are not followed, as git does not, unless given by name; what is not a regular file is
    passed over. Paths come out as they were given. ``on_problem`` is told, in one line, of folders that cannot be
    read and of files of another kind.
    """
    walker = _Walker(exclude, extend_exclude, root, on_problem or (lambda text: None))
    for path in paths:
        if os.path.isdir(path):
            walker.folder(path)
        else:
            walker.file(path)
    return iter(sorted(walker.found.values()))


class _Walker:
    """One search. ``found`` maps the real path of each file to the path it was reached by."""

    def __init__(
        self,
        exclude: Sequence[str] | None,
        extend_exclude: Sequence[str],
        root: str | None,
        on_problem: Callable[[str], None],
    ) -> None:
        base = os.path.realpath(root or os.getcwd())
        self.names = DEFAULT_EXCLUDES if exclude is None else frozenset[str]()
        self.patterns = Patterns(base, (*(exclude or ()), *extend_exclude))
        self.on_problem = on_problem
        self.found: dict[str, str] = {}
        self.walked: set[str] = set()

    def file(self, path: str) -> None:
        """Take one file that was given by name."""
        if path.endswith(OTHER_KINDS):
            self.on_problem(f"{path}: gradlint reads Python files only, this one is passed over")
        elif os.path.isfile(path):
            self.found.setdefault(os.path.realpath(path), path)

    def folder(self, path: str) -> None:
        """Search one folder that was given by name. Linked files come last, so that real paths win."""
        real = os.path.realpath(path)
        excluded = self.patterns if not self.patterns.decision(real, is_dir=True) else Patterns(real, ())
        links: list[tuple[str, str]] = []
        waiting = [("" if path == os.curdir else path, real, inherited(real))]
        while waiting:
            shown, real, stack = waiting.pop()
            if real in self.walked:
                continue
            self.walked.add(real)
            own = read_patterns(os.path.join(real, ".gitignore"), real)
            stack = [*stack, own] if own else stack
            for entry in self._listing(shown, real):
                is_dir, place = entry.is_dir(follow_symlinks=False), os.path.join(real, entry.name)
                if not (is_dir or _is_module(entry)) or self._left_out(entry.name, place, is_dir, stack, excluded):
                    continue
                name = os.path.join(shown, entry.name)
                if is_dir:
                    waiting.append((name, place, stack))
                elif entry.is_symlink():
                    links.append((os.path.realpath(place), name))
                else:
                    self.found.setdefault(place, name)
        for target, name in sorted(links):
            self.found.setdefault(target, name)

    def _listing(self, shown: str, real: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(real) as entries:
                return list(entries)
        except OSError as error:
            self.on_problem(f"{shown or os.curdir}: cannot be searched: {error.strerror or error}")
            return []

    def _left_out(self, name: str, place: str, is_dir: bool, stack: list[Patterns], excluded: Patterns) -> bool:
        if is_dir and (name in self.names or (self.names and name.endswith(".egg-info"))):
            return True
        return bool(excluded.decision(place, is_dir=is_dir)) or ignored(stack, place, is_dir=is_dir)


def _is_module(entry: os.DirEntry[str]) -> bool:
    """A regular file, or a link to one, whose name ends in ``.py``."""
    return entry.name.endswith(".py") and entry.is_file()
