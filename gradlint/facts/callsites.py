"""How a project calls one of its classes or functions: the arguments, as texts that need nothing but a module's names.

dim = 64
net = Net(dim, depth=args.depth)      ->  args ["64"], kwargs {"depth": "12"}
y = net(torch.randn(2, 10))           ->  inputs ["torch.randn(2, 10)"]
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlint.facts.closing import Closer, Frame, NotClosed
from gradlint.facts.defaults import values
from gradlint.facts.index import ProjectIndex, SourceFile, parse_text, read_text
from gradlint.facts.names import Scope

MAX_SITES = 12
_MAX_PARSED = 60
_MAX_TEXT = 2000
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
_EXAMPLES = re.compile(r"(^|[/\\])(tests?|examples?|demo|scripts?|benchmarks?)([/\\]|$)|(^|[/\\])(test_|example|demo)")


@dataclass(frozen=True)
class CallSite:
    """One call. ``args`` and ``kwargs`` are expressions over ``names``, which are bound at the top of ``module``.

    ``closed`` is False where an argument depends on something that the text does not tell; it is then given as
    written. ``inputs`` are the arguments of a later call of what this call made.
    """

    path: str
    module: str
    line: int
    args: tuple[str, ...] = ()
    kwargs: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    input_kwargs: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    closed: bool = True
    owner: str = ""
    """The class or function at the top of the file that the call stands in."""
    file: SourceFile | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """As the probe's request holds it."""
        found: dict[str, Any] = {
            "module": self.module,
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "line": self.line,
        }
        if self.inputs or self.input_kwargs:
            found["inputs"] = {"args": list(self.inputs), "kwargs": dict(self.input_kwargs)}
        return found


def call_sites(index: ProjectIndex, path: str, name: str, limit: int = MAX_SITES) -> list[CallSite]:
    """The calls of ``name`` (a class or function of the file at ``path``) in its project, best first.

    Self-contained ones come first; among them the same file, then files that import it, tests and examples, README.
    """
    target = index.parse(path)
    if target is None:
        return []
    last = name.rpartition(".")[2]
    word = last.encode()
    pattern = re.compile(rb"(?<!class )\b%s(?:\s*\(|\s+as\s)" % word)
    found: list[tuple[tuple[int, ...], CallSite]] = []
    parsed = 0
    for real in dict.fromkeys((target.real, *index.files(path))):
        data = index.data(real)
        if data is None or word not in data or pattern.search(data) is None:
            continue
        parsed += 1
        for file, rank in _files(index, real, data, last):
            mine = 0 if real == target.real else rank
            for site in _Finder(index, file, target, name).sites():
                found.append(((not site.closed, mine, bool(site.names), site.line), site))
        if parsed >= _MAX_PARSED:
            break
    found.sort(key=lambda pair: pair[0])
    unique = {(s.args, tuple(sorted(s.kwargs.items())), s.names and s.module): s for _, s in reversed(found)}
    return [s for _, s in found if s in unique.values()][:limit]


def _files(index: ProjectIndex, real: str, data: bytes, name: str) -> Iterator[tuple[SourceFile, int]]:
    """The file, or the Python blocks of a Markdown file that call ``name``; and its rank."""
    if not real.lower().endswith(".md"):
        file = index.parse(real)
        if file is not None:
            yield file, 2 if _EXAMPLES.search(file.path) else 1
        return
    text = read_text(data)
    for block in _FENCE.finditer(text) if text is not None else ():
        if text is not None and f"{name}(" in block[1]:
            file = _block_file(index, real, text, block)
            if file is not None:
                yield file, 3


def _block_file(index: ProjectIndex, real: str, text: str, block: re.Match[str]) -> SourceFile | None:
    """A code block as a module of its own, on the lines that it has in the document."""
    before = text.count("\n", 0, block.start(1))
    source = "\n" * before + block[1] + "\n" * text.count("\n", block.end(1))
    tree = parse_text(source)
    if tree is None:
        return None
    module = f"README_line_{before + 1}"
    return SourceFile(index.shown(real), real, module, "", False, source, tree)


@dataclass(frozen=True, eq=False)
class _Spot:
    """A call, and where it stands."""

    call: ast.Call
    parent: ast.AST
    frame: Frame
    scope: Scope


def _call_table(file: SourceFile) -> dict[str, list[_Spot]]:
    """All calls of a file by the last name of what they call."""
    table: dict[str, list[_Spot]] | None = file.__dict__.get("_calls")
    if table is None:
        table = file.__dict__["_calls"] = {}
        _tabulate(table, file, file.tree, Frame(file.tree.body, None, None), file.names.top)
    return table


def _tabulate(table: dict[str, list[_Spot]], file: SourceFile, top: ast.AST, frame: Frame, scope: Scope) -> None:
    stack: list[ast.AST] = [top]
    while stack:
        node = stack.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = Frame(child.body, child, frame, frame.cls)
                _tabulate(table, file, child, inner, file.names.scopes.get(child, scope))
            elif isinstance(child, ast.ClassDef):
                inner = Frame(child.body, None, frame, child)
                _tabulate(table, file, child, inner, file.names.scopes.get(child, scope))
            else:
                if isinstance(child, ast.Call) and isinstance(child.func, (ast.Name, ast.Attribute)):
                    last = child.func.id if isinstance(child.func, ast.Name) else child.func.attr
                    table.setdefault(last, []).append(_Spot(child, node, frame, scope))
                stack.append(child)


class _Finder:
    """The calls of one definition in one file."""

    def __init__(self, index: ProjectIndex, file: SourceFile, target: SourceFile, name: str) -> None:
        self.index = index
        self.file = file
        self.target = target
        self.name = name
        self.last = name.rpartition(".")[2]
        binding = target.names.top.binding(name.partition(".")[0])
        self.node = binding.node if binding is not None else None
        self._values: dict[str, str] | None = None

    def sites(self) -> Iterator[CallSite]:
        """The calls in the order of the text."""
        table = _call_table(self.file)
        names = {self.last}
        if f"{self.last} as " in self.file.text:
            names.update(table)  # imported under another name
        for name in sorted(names & table.keys()):
            for spot in table[name]:
                if self._is_target(spot.call.func, spot.scope):
                    yield self._site(spot.call, spot.parent, spot.frame)

    def _is_target(self, func: ast.expr, scope: Scope) -> bool:
        if not isinstance(func, (ast.Name, ast.Attribute)):
            return False
        dotted = self.file.names.qualified(func, scope)
        if dotted is None:
            return False
        found = self.index.locate(dotted, self.file)
        if found is not None:
            return found[1] is self.node and (found[0].real == self.target.real)
        top, home = self.target.module.partition(".")[0], dotted.rpartition(".")[0]
        near = dotted.endswith(f".{self.last}") and dotted.startswith(f"{top}.")
        return near and self.index.find(home, self.file.real) is None

    def _site(self, call: ast.Call, parent: ast.AST, frame: Frame) -> CallSite:
        if self._values is None:
            self._values = values(self.index, self.file)
        closer = Closer(self.file, self._values)
        args, kwargs, closed = _arguments(call, closer, frame)
        inputs: tuple[str, ...] = ()
        input_kwargs: dict[str, str] = {}
        later = _later_call(parent, frame, call) if closed else None
        if later is not None:
            before = set(closer.used)
            inputs, input_kwargs, fine = _arguments(later, closer, frame)
            if not fine:
                inputs, input_kwargs, closer.used = (), {}, before
        names = tuple(sorted(closer.used))
        file = self.file
        return CallSite(
            file.path, file.module, call.lineno, args, kwargs, inputs, input_kwargs, names, closed, _owner(frame), file
        )


def _owner(frame: Frame) -> str:
    name = ""
    while frame.outer is not None:
        node = frame.function or frame.cls
        name = node.name if node is not None else name
        frame = frame.outer
    return name


def _arguments(call: ast.Call, closer: Closer, frame: Frame) -> tuple[tuple[str, ...], dict[str, str], bool]:
    """The arguments as texts, ``*`` and ``**`` of literals spread out, and whether all are self-contained."""
    args: list[str] = []
    kwargs: dict[str, str] = {}
    closed = True
    for arg in call.args:
        text, fine = _closed(arg.value if isinstance(arg, ast.Starred) else arg, closer, frame, call.lineno)
        closed = closed and fine
        if not isinstance(arg, ast.Starred):
            args.append(text)
            continue
        spread = ast.parse(text, mode="eval").body
        closed = closed and isinstance(spread, (ast.List, ast.Tuple))
        args += [ast.unparse(e) for e in spread.elts] if isinstance(spread, (ast.List, ast.Tuple)) else []
    for keyword in call.keywords:
        text, fine = _closed(keyword.value, closer, frame, call.lineno)
        closed = closed and fine
        if keyword.arg is not None:
            kwargs[keyword.arg] = text
            continue
        pairs = _pairs(ast.parse(text, mode="eval").body)
        closed = closed and pairs is not None
        kwargs.update(pairs or {})
    return tuple(args), kwargs, closed


def _pairs(node: ast.expr) -> dict[str, str] | None:
    if isinstance(node, ast.Dict) and all(isinstance(k, ast.Constant) for k in node.keys):
        return {
            str(k.value): ast.unparse(v)
            for k, v in zip(node.keys, node.values, strict=True)
            if isinstance(k, ast.Constant)
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
    return None


def _closed(node: ast.expr, closer: Closer, frame: Frame, line: int) -> tuple[str, bool]:
    used = set(closer.used)
    try:
        text = ast.unparse(closer.close(node, frame, line))
    except NotClosed:
        closer.used = used
        return ast.unparse(node), False
    if len(text) > _MAX_TEXT:
        closer.used = used
        return ast.unparse(node), False
    return text, True


def _later_call(parent: ast.AST, frame: Frame, call: ast.Call) -> ast.Call | None:
    """``net(x)`` after ``net = Net()``, or the outer call of ``Net()(x)``."""
    if isinstance(parent, ast.Call) and parent.func is call:
        return parent
    target = parent.targets[0] if isinstance(parent, ast.Assign) else None
    if not isinstance(target, ast.Name):
        return None
    return next(_calls_of(target.id, frame.body, call.lineno), None)


def _calls_of(name: str, body: Sequence[ast.stmt], line: int) -> Iterator[ast.Call]:
    for node in body:
        if (node.end_lineno or 0) <= line:
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == name:
                yield inner
