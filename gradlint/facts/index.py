"""The files of a project: from a module's name to its file and back, parsed when asked for, re-exports followed.

Nothing is imported. What cannot be read or parsed is as if it were not there; :class:`ProjectIndex` never raises
on what it finds on disk.
"""

from __future__ import annotations

import ast
import copy
import io
import os
import re
import sys
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gradlint.facts.names import Binding, Names, absolute

if TYPE_CHECKING:
    from gradlint.facts.callsites import CallSite

MAX_FILES = 2000
MAX_BYTES = 1_000_000
MAX_SEARCHED_BYTES = 64_000_000
_MAX_HOPS = 30
_MAX_ANCESTORS = 3
_MARKERS = ("pyproject.toml", "setup.py", "setup.cfg", ".git", "requirements.txt")
_SKIPPED = frozenset(
    {"__pycache__", "node_modules", "site-packages", "dist-packages", "build", "dist", "venv", "env", "wandb", "_build"}
)
# A project file with such a name is never what `import torch` means.
_NEVER_PROJECT = frozenset({"torch", "numpy", *sys.stdlib_module_names})


@dataclass(frozen=True, eq=False)
class SourceFile:
    """One parsed file. ``text`` has ``\\n`` as its only line end and no byte order mark."""

    path: str
    """As given on the command line, or relative to the working directory where that is shorter."""
    real: str
    """The absolute path."""
    module: str
    package: str
    is_package: bool
    text: str
    tree: ast.Module

    @cached_property
    def names(self) -> Names:
        """The file's imports and definitions."""
        return Names.of(self.tree, self.module, self.package)

    @cached_property
    def lazy_annotations(self) -> bool:
        """Whether annotations are not evaluated."""
        return any(
            isinstance(n, ast.ImportFrom) and n.module == "__future__" and any(a.name == "annotations" for a in n.names)
            for n in self.tree.body[:10]
        )


def read_text(data: bytes) -> str | None:
    """``data`` decoded as Python would decode a source file, with ``\\n`` line ends; None where it cannot be."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def parse_text(text: str) -> ast.Module | None:
    """The tree of ``text``, or None where the running Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_RELATIVE = re.compile(r"^[ \t]*from[ \t]+(\.+)", re.MULTILINE)
"""A relative import; its dots say how many folders it climbs."""


class ProjectIndex:
    """The project around the given paths. ``texts`` replaces the contents of files (an editor's buffer, stdin)."""

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]] = (),
        *,
        texts: dict[str, str] | None = None,
        max_files: int = MAX_FILES,
    ) -> None:
        self.max_files = max_files
        self.roots = tuple(dict.fromkeys(_absolute(os.fspath(p)) for p in paths))
        self._shown = {_absolute(os.fspath(p)): os.fspath(p) for p in paths}
        self._texts = {_absolute(p): t for p, t in (texts or {}).items()}
        self._bytes: dict[str, bytes | None] = {}
        self._size = 0
        self._trees: dict[str, tuple[str, ast.Module] | None] = {}
        self._held = 0
        self._parsed: dict[tuple[str, str], SourceFile | None] = {}
        self._found: dict[tuple[str, str], str | None] = {}
        self._bases: dict[str, tuple[str, ...]] = {}
        self._projects: dict[str, str] = {}
        self._listed: dict[str, tuple[str, ...]] = {}

    # -- files

    def parse(self, path: str | os.PathLike[str], module: str | None = None) -> SourceFile | None:
        """The file at ``path``, under the name it is imported by where that is known; None if it cannot be parsed."""
        real = _absolute(os.fspath(path))
        key = (real, module or "")
        if key not in self._parsed:
            self._parsed[key] = self._parse(real, module)
        elif real in self._trees:
            self._trees[real] = self._trees.pop(real)
        return self._parsed[key]

    def trim(self, characters: int) -> frozenset[str]:
        """Once more than so much source is held, let go of what was not asked for longest, down to half of it.

        Bounds the memory of a long run; what is asked for again is parsed again. Gives the paths that were let go.
        """
        dropped = set()
        if self._held <= characters:
            return frozenset()
        while self._held > characters // 2 and len(self._trees) > 1:
            real = next(iter(self._trees))
            gone = self._trees.pop(real)
            self._held -= len(gone[0]) if gone is not None else 0
            dropped.add(real)
        if dropped:
            self._parsed = {key: file for key, file in self._parsed.items() if key[0] not in dropped}
        return frozenset(dropped)

    def with_text(self, path: str | os.PathLike[str], text: str) -> ProjectIndex:
        """The same project with another text for one file: an edit that is being tried."""
        other = copy.copy(self)
        real = _absolute(os.fspath(path))
        other._texts = {**self._texts, real: text}
        other._bytes = {p: b for p, b in self._bytes.items() if p != real}
        other._trees = {p: t for p, t in self._trees.items() if p != real}
        other._parsed = {k: f for k, f in self._parsed.items() if k[0] != real}
        return other

    def shown(self, real: str) -> str:
        """How messages call a file: as given, or relative to the working directory if it lies below."""
        if real in self._shown:
            return self._shown[real]
        relative = os.path.relpath(real)
        return real if relative.startswith("..") else relative

    def data(self, real: str) -> bytes | None:
        """The bytes of a file; None where it cannot be read, is not a regular file or is too large."""
        if real in self._texts:
            return self._texts[real].encode()
        if real not in self._bytes:
            self._bytes[real] = self._read(real)
        return self._bytes[real]

    def _read(self, real: str) -> bytes | None:
        if len(self._bytes) > 2 * self.max_files or self._size > MAX_SEARCHED_BYTES:
            return None
        try:
            if not os.path.isfile(real) or os.path.getsize(real) > MAX_BYTES:
                return None
            data = Path(real).read_bytes()
        except OSError:
            return None
        self._size += len(data)
        return data

    def _read_tree(self, real: str) -> tuple[str, ast.Module] | None:
        """One tree for a file under all the names it is imported by."""
        if real in self._texts:
            text: str | None = self._texts[real].removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        else:
            data = self.data(real)
            text = None if data is None else read_text(data)
        tree = None if text is None else parse_text(text)
        return None if text is None or tree is None else (text, tree)

    def _new_tree(self, real: str) -> tuple[str, ast.Module] | None:
        read = self._read_tree(real)
        self._held += len(read[0]) if read is not None else 0
        return read

    def _parse(self, real: str, module: str | None) -> SourceFile | None:
        read = self._trees.pop(real) if real in self._trees else self._new_tree(real)
        self._trees[real] = read  # the last one asked for is the last one to go
        if read is None:
            return None
        text, tree = read
        is_package = os.path.basename(real) == "__init__.py"
        name = module if module is not None else self._module_name(real, text)
        package = name if is_package else name.rpartition(".")[0]
        return SourceFile(self.shown(real), real, name, package, is_package, text, tree)

    # -- names of modules

    def module_of(self, path: str | os.PathLike[str]) -> str:
        """The full name of the module at ``path``: from the folders above it that hold an ``__init__.py``.

        A file in a plain folder that imports relatively is taken as part of as many folders as it climbs.
        """
        file = self.parse(path)
        return file.module if file is not None else self._module_name(_absolute(os.fspath(path)), "")

    def _module_name(self, real: str, text: str) -> str:
        folder, base = os.path.split(real)
        stem = os.path.splitext(base)[0]
        parts = [] if stem == "__init__" else [stem]
        levels = max((len(dots[1]) for dots in _RELATIVE.finditer(text)), default=0)
        while folder != os.path.dirname(folder) and (os.path.isfile(os.path.join(folder, "__init__.py")) or levels > 0):
            folder, name = os.path.split(folder)
            parts.append(name)
            levels -= 1
        return ".".join(reversed(parts)) or "__init__"

    def find(self, module: str, near: str) -> str | None:
        """The file of ``module`` as a file at ``near`` would import it; None where the project has none."""
        if not module:
            return None
        real = _absolute(near)
        folder = os.path.dirname(real)
        key = (folder, module)
        if key not in self._found:
            self._found[key] = self._find(module, folder)
        return self._found[key]

    def _find(self, module: str, folder: str) -> str | None:
        parts = module.split(".")
        for number, base in enumerate(self._search_path(folder)):
            own = number == 0 and os.path.isfile(os.path.join(base, parts[0], "__init__.py"))
            if parts[0] in _NEVER_PROJECT and not own:
                continue
            stem = os.path.join(base, *parts)
            for candidate in (os.path.join(stem, "__init__.py"), f"{stem}.py"):
                if candidate in self._texts or os.path.isfile(candidate):
                    return candidate
        return None

    def _search_path(self, folder: str) -> tuple[str, ...]:
        """Where absolute imports of a file in ``folder`` may start: its package's root, itself, the folders above."""
        if folder not in self._bases:
            top = folder
            while os.path.isfile(os.path.join(top, "__init__.py")) and top != os.path.dirname(top):
                top = os.path.dirname(top)
            project = self.project_of(folder)
            bases = [top, folder]
            here = top
            for _ in range(_MAX_ANCESTORS + 3):
                if here in (project, os.path.dirname(here)):
                    break
                here = os.path.dirname(here)
                bases.append(here)
            bases.append(project)
            self._bases[folder] = tuple(dict.fromkeys(b for base in bases for b in (base, os.path.join(base, "src"))))
        return self._bases[folder]

    def project_of(self, folder: str) -> str:
        """The folder of the project that ``folder`` is part of: the nearest with a marker file, or a given path."""
        if folder not in self._projects:
            self._projects[folder] = self._project(folder)
        return self._projects[folder]

    def _project(self, folder: str) -> str:
        top = folder
        while os.path.isfile(os.path.join(top, "__init__.py")) and top != os.path.dirname(top):
            top = os.path.dirname(top)
        here = top
        for _ in range(_MAX_ANCESTORS + 1):
            if any(os.path.exists(os.path.join(here, m)) for m in _MARKERS):
                return here
            if here == os.path.dirname(here):
                break
            here = os.path.dirname(here)
        given = [r for r in self.roots if os.path.isdir(r) and f"{folder}/".startswith(f"{r}/")]
        return min(given, key=len) if given else top

    def files(self, path: str) -> tuple[str, ...]:
        """Absolute paths of the Python and Markdown files of the project around ``path``, its own folder first."""
        folder = os.path.dirname(_absolute(path))
        project = self.project_of(folder)
        if project not in self._listed:
            self._listed[project] = tuple(self._list(project))
        given = (r for r in self.roots if r.endswith(".py"))
        return tuple(dict.fromkeys([*given, *self._texts, *self._listed[project]]))

    def _list(self, project: str) -> Iterator[str]:
        count = 0
        for folder, folders, names in os.walk(project, followlinks=False):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _SKIPPED)
            for name in sorted(names):
                readme = name.lower().endswith(".md") and folder == project
                if name.endswith(".py") or readme:
                    count += 1
                    yield os.path.join(folder, name)
            if count > self.max_files:
                return

    # -- definitions

    def resolve(self, module: str, name: str, near: str | None = None) -> tuple[str, ast.stmt] | None:
        """Where ``module.name`` is defined: the file and the statement, through re-exports and ``*`` imports.

        ``near`` is a file of the project from which ``module`` is imported (default: the given paths). An
        assignment of anything but another name is its own definition.
        """
        starts = [near] if near is not None else [r if r.endswith(".py") else os.path.join(r, "_") for r in self.roots]
        for start in starts:
            real = self.find(module, start)
            file = self.parse(real, module) if real is not None else None
            found = self._resolve(file, name.split("."), set()) if file is not None else None
            if found is not None:
                return found[0].path, found[1]
        return None

    def locate(self, dotted: str, file: SourceFile) -> tuple[SourceFile, ast.stmt] | None:
        """The definition that the full name ``dotted`` stands for, as :meth:`Names.qualified` gives it in ``file``."""
        if file.module and dotted.startswith(f"{file.module}."):
            found = self._resolve(file, dotted[len(file.module) + 1 :].split("."), set())
            if found is not None:
                return found
        elif "." not in dotted:
            return self._resolve(file, [dotted], set())
        return self._walk(dotted.split("."), file.real, set())

    def definition(self, file: SourceFile, name: str) -> tuple[SourceFile, ast.stmt] | None:
        """As :meth:`resolve`, for a (dotted) name as the top level of ``file`` sees it."""
        return self._resolve(file, name.split("."), set())

    def _resolve(
        self, file: SourceFile, parts: list[str], seen: set[tuple[str, str]]
    ) -> tuple[SourceFile, ast.stmt] | None:
        name = parts[0]
        key = (file.real, ".".join(parts))
        if key in seen or len(seen) > _MAX_HOPS:
            return None
        seen.add(key)
        binding = file.names.top.binding(name)
        if binding is None:
            return self._elsewhere(file, parts, seen)
        node = binding.node
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._imported(file, node, binding, parts, seen)
        if isinstance(node, ast.ClassDef) and len(parts) > 1:
            return _member(file, node, parts[1:])
        if binding.alias is not None and isinstance(node, (ast.Assign, ast.AnnAssign)):
            found = self._resolve(file, ast.unparse(binding.alias).split("."), seen)
            return found or (file, node)
        return (file, node) if isinstance(node, ast.stmt) and len(parts) == 1 else None

    def _imported(
        self,
        file: SourceFile,
        node: ast.Import | ast.ImportFrom,
        binding: Binding,
        parts: list[str],
        seen: set[tuple[str, str]],
    ) -> tuple[SourceFile, ast.stmt] | None:
        target = (binding.target or "").split(".")
        if isinstance(node, ast.ImportFrom):
            base = absolute(node, file.package)
            inside = self.module(base, file.real)
            rest = [target[-1], *parts[1:]]
            found = self._resolve(inside, rest, seen) if inside is not None and inside.real != file.real else None
            if found is not None:
                return found
        return self._walk([*target, *parts[1:]], file.real, seen)

    def _walk(self, parts: list[str], near: str, seen: set[tuple[str, str]]) -> tuple[SourceFile, ast.stmt] | None:
        """``a.b.c.Name``: the longest prefix that is a module of the project, and the rest as a name in it."""
        for cut in range(len(parts) - 1, 0, -1):
            inside = self.module(".".join(parts[:cut]), near)
            if inside is not None:
                return self._resolve(inside, parts[cut:], seen)
        return None

    def _elsewhere(
        self, file: SourceFile, parts: list[str], seen: set[tuple[str, str]]
    ) -> tuple[SourceFile, ast.stmt] | None:
        for _, module in file.names.stars:
            inside = self.module(module, file.real)
            if inside is not None and inside.real != file.real and exports(inside, parts[0]):
                found = self._resolve(inside, parts, seen)
                if found is not None:
                    return found
        if file.is_package and len(parts) > 1:
            inside = self.module(f"{file.module}.{parts[0]}", file.real)
            return self._resolve(inside, parts[1:], seen) if inside is not None else None
        return None

    # -- use: see the modules that do the work

    def call_sites(self, path: str, name: str, limit: int = 12) -> list[CallSite]:
        """How the project calls ``name``, a class or function of the file at ``path``; best first."""
        from gradlint.facts.callsites import call_sites

        return call_sites(self, path, name, limit)

    def values(self, path: str) -> dict[str, str]:
        """Expressions of the file whose value its configuration tells, both as ``ast.unparse`` writes them."""
        from gradlint.facts.defaults import values

        file = self.parse(path)
        return values(self, file) if file is not None else {}

    def module(self, module: str, near: str) -> SourceFile | None:
        """The parsed file of ``module`` as imported by the file at ``near``; None where it is not the project's."""
        real = self.find(module, near)
        return self.parse(real, module) if real is not None else None


def exports(file: SourceFile, name: str) -> bool:
    """Whether ``from file import *`` may bind ``name``: its ``__all__`` if that is plain, else no underscore."""
    binding = file.names.top.binding("__all__")
    value = getattr(binding.node, "value", None) if binding is not None else None
    if isinstance(value, (ast.List, ast.Tuple)) and len(file.names.top.bindings["__all__"]) == 1:
        listed = {e.value for e in value.elts if isinstance(e, ast.Constant)}
        if name in listed or len(listed) == len(value.elts):
            return name in listed
    if name.startswith("_"):
        return False
    return name in file.names.top.bindings or bool(file.names.stars)


def _member(file: SourceFile, node: ast.ClassDef, rest: list[str]) -> tuple[SourceFile, ast.stmt] | None:
    for part in rest:
        found = [c for c in node.body if isinstance(c, (ast.ClassDef, ast.FunctionDef)) and c.name == part]
        if not found:
            return None
        inner = found[-1]
        if not isinstance(inner, ast.ClassDef):
            return (file, inner) if part is rest[-1] else None
        node = inner
    return file, node


def _absolute(path: str) -> str:
    return os.path.normpath(os.path.join(os.getcwd(), path))
