"""Slices of a project: what one class, one value or one training step needs, and nothing else.

A sliced module is its file's own text with everything else blanked out, so that lines in the worker are lines in the
user's file. Three entry points: :func:`slice_for` (top-level names), :func:`slice_variable` (a value made inside a
function) and :func:`slice_step` (a training step). None of them runs or imports anything.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradlint.facts.callsites import CallSite
from gradlint.facts.index import ProjectIndex, SourceFile
from gradlint.facts.names import FunctionNode
from gradlint.probe.dependencies import Slicer
from gradlint.probe.locals import Body, runs_at_top, scope_chain, slice_body
from gradlint.probe.parts import Module, Part, Unit

__all__ = ["Module", "Slice", "slice_for", "slice_step", "slice_variable"]

# Calls of these at module level, their result thrown away, cannot reach a gradient.
_SIDE_EFFECTS = frozenset(
    {"matplotlib", "os", "sys", "time", "json", "csv", "pickle", "shutil", "warnings", "logging", "wandb", "tqdm"}
    | {"subprocess", "pathlib", "pprint", "rich", "loguru", "mlflow", "gc", "atexit", "signal", "locale", "seaborn"}
)
_HARMLESS_BUILTINS = frozenset({"builtins.print", "builtins.input", "builtins.help", "builtins.exit", "builtins.quit"})


@dataclass(frozen=True)
class Slice:
    """Modules for the worker. ``missing`` names what nothing in the project binds: ``"pkg.models.name"``."""

    modules: tuple[Module, ...]
    entry: str
    missing: tuple[str, ...] = ()


def slice_for(
    index: ProjectIndex,
    path: str,
    wanted: Iterable[str],
    scope: str | None = None,
    calls: Sequence[CallSite] = (),
    others: Sequence[tuple[str, str]] = (),
) -> Slice:
    """The top-level statements that ``wanted`` names of the file at ``path`` need, across the files of the project.

    ``others`` are names of other files that are needed too, each with the file's path.

    With ``scope`` the (one) wanted name is local to that function, see :func:`slice_variable`. The names that
    ``calls`` use are kept in their modules, so that their arguments can be evaluated there.
    """
    names = list(wanted)
    if scope and names:
        return slice_variable(index, path, scope, names[0], calls)
    file = index.parse(path)
    if file is None:
        return Slice((), "", tuple(names))
    slicer = Slicer(index)
    part = slicer.part(file)
    for name in names:
        slicer.want(part, name.partition(".")[0])
    for other, name in others:
        found = index.parse(other)
        if found is not None:
            slicer.want(slicer.part(found), name)
    return _finish(slicer, file, calls)


def slice_variable(index: ProjectIndex, path: str, scope: str, name: str, calls: Sequence[CallSite] = ()) -> Slice:
    """The statements of the function ``scope`` that the value of its local ``name`` depends on, at module level.

    They stay on their lines and columns: the function's header becomes ``if 1:`` or, where parameters are needed,
    ``for depth in [12]:`` with their values from calls in the project, from configuration or from defaults. Where
    the function stands before what it uses they are a module of their own, that imports from the file's slice.
    What the value depends on outside the function is sliced as by :func:`slice_for`.
    """
    file = index.parse(path)
    chain = scope_chain(file.tree, scope) if file is not None else None
    if file is None or not chain:
        return Slice((), file.module if file is not None else "", (f"{file.module}.{name}" if file else name,))
    slicer = Slicer(index)
    part = slicer.part(file)
    body = Body(part, {name: {""}})
    for node in reversed(chain):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            target = name if node is chain[-1] else None
            slice_body(body, [s for s in node.body if s not in body.headers], target)
            given = _parameters(index, file, node, body)
            body.headers[node] = _header(given)
        else:
            body.headers[node] = "if 1:"
    if not runs_at_top(body.whole):
        return Slice((), file.module, (f"{file.module}.{name}",))
    if name in body.needs and name not in body.bound:
        return Slice((), file.module, (f"{file.module}.{name}",))
    _follow_body(slicer, part, body)
    slicer.run()
    if any(unit.node.lineno > chain[0].lineno for unit in part.kept) and chain[0].lineno > 1:
        own = Part(dataclasses.replace(file, module=f"{file.module}__{chain[-1].lineno}", is_package=False))
        own.extra = body.keep()
        slicer.parts = {own.file.module: own, **slicer.parts}
        names = sorted(part.binders.keys() & body.needs.keys())
        made = _finish(slicer, own.file, calls)
        return dataclasses.replace(
            made, modules=(_importing(made.modules[0], file, names, chain[0]), *made.modules[1:])
        )
    part.extra = body.keep()
    return _finish(slicer, file, calls)


def _follow_body(slicer: Slicer, part: Part, body: Body) -> None:
    """What the kept statements of functions need from outside."""
    for local, tails in body.needs.items():
        if local not in body.bound or local in part.binders:
            for tail in tails:
                slicer.want(part, local, tail)
    for node in body.whole:
        for inner in part.read(node).imports:
            if inner is not node:
                slicer.inner_import(part, inner, part.read(node).imported)
    for imported, alias, tails in body.imports:
        for tail in tails or {""}:
            slicer.alias(part, imported, alias, tail, narrow=False)


def _importing(module: Module, file: SourceFile, names: Sequence[str], node: ast.stmt) -> Module:
    """A function's statements as a module of their own, for a function that stands before what it uses."""
    lines = module["source"].split("\n")
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    lines[first - 2] = f"from {file.module} import {', '.join(names)}" if names else ""
    return {**module, "source": "\n".join(lines)}


def slice_step(index: ProjectIndex, path: str, region: str, also: Sequence[str] = ()) -> Slice:
    """What a training step needs: ``region`` is its function or method, ``""`` the module's own statements.

    Of a function: it (a method: its class), what it calls, and the module-level statements that feed the names it
    uses, those of an ``if __name__ == "__main__"`` block included where nothing else binds a name. Of a module: all
    statements but unused definitions and imports, and calls for their effect outside (printing, plotting, files).
    ``also``: other functions and methods to keep.
    """
    file = index.parse(path)
    if file is None:
        return Slice((), "", (region,))
    slicer = Slicer(index)
    part = slicer.part(file)
    for other in also:
        slicer.want(part, other.partition(".")[0])
    if region:
        slicer.want(part, region.partition(".")[0])
    else:
        for unit in part.units:
            if _runs_in_step(file, unit):
                slicer.keep(part, unit)
    return _finish(slicer, file, ())


def _runs_in_step(file: SourceFile, unit: Unit) -> bool:
    node = unit.node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
        return False
    if unit.hidden is not None and not unit.main:
        return False
    if not isinstance(node, ast.Expr):
        return True
    if not isinstance(node.value, ast.Call):
        return not isinstance(node.value, ast.Constant)
    name = file.names.qualified(node.value.func) or ""
    return name not in _HARMLESS_BUILTINS and name.partition(".")[0] not in _SIDE_EFFECTS


def _finish(slicer: Slicer, file: SourceFile, calls: Sequence[CallSite]) -> Slice:
    for call in calls:
        if call.file is not None and call.names:
            part = slicer.part(call.file)
            for name in call.names:
                slicer.want(part, name)
    slicer.run()
    return Slice(tuple(p.module() for p in slicer.parts.values()), file.module, tuple(slicer.missing))


# -- parameters of a function that is run at module level


def _parameters(index: ProjectIndex, file: SourceFile, node: FunctionNode, body: Body) -> dict[str, str]:
    """Values for the parameters that are needed; those without one stay needed, and will be found missing."""
    spec = node.args
    named = [a.arg for a in (*spec.posonlyargs, *spec.args)]
    known: dict[str, str] = {}
    if spec.defaults:
        known.update(zip(named[-len(spec.defaults) :], map(ast.unparse, spec.defaults), strict=True))
    known.update({a.arg: ast.unparse(d) for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d})
    if spec.vararg is not None:
        known[spec.vararg.arg] = "()"
    if spec.kwarg is not None:
        known[spec.kwarg.arg] = "{}"
    every = [*named, *(a.arg for a in (*spec.kwonlyargs, spec.vararg, spec.kwarg) if a is not None)]
    needed = [name for name in every if name in body.needs]
    if not needed:
        return {}
    known.update(_told(index, file, node, named, set(every)))
    told = index.values(file.path)
    given = {name: known.get(name) or told.get(name, "") for name in needed}
    given = {name: text for name, text in given.items() if text}
    for name in given:
        body.needs.pop(name)
    for text in given.values():
        for used, tails in _free(body.part, text).items():
            body.needs.setdefault(used, set()).update(tails)
    return given


def _told(
    index: ProjectIndex, file: SourceFile, node: FunctionNode, named: Sequence[str], every: set[str]
) -> Mapping[str, str]:
    """Arguments of the best call of the function in the project, where they mean the same in this file."""
    for call in index.call_sites(file.path, node.name):
        if not call.closed or (call.names and call.module != file.module):
            continue
        names = named[1:] if named[:1] == ["self"] else named
        return {**dict(zip(names, call.args, strict=False)), **{k: v for k, v in call.kwargs.items() if k in every}}
    return {}


def _free(part: Part, text: str) -> Mapping[str, set[str]]:
    return part.read(ast.parse(text).body[0]).loads


def _header(given: Mapping[str, str]) -> str:
    if not given:
        return "if 1:"
    names, texts = list(given), list(given.values())
    if len(names) == 1:
        return f"for {names[0]} in [{texts[0]}]:"
    return f"for {', '.join(names)} in [({', '.join(texts)})]:"
