"""Names that sliced code reads from its module and that nothing there binds: stand-ins by role, else ghosts."""

from __future__ import annotations

import ast
import functools
import re
import types
from typing import Any, Dict, FrozenSet, List, Sequence, Set, Tuple, Union

from ghost import UNKNOWN_DEVICE, Ghost
from ghost_world import MISSING
from step_roles import MODEL
from step_world import RunWorld

DEVICE = re.compile(r"device$")
_Function = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def fill_before(module: types.ModuleType, tree: ast.Module, world: RunWorld) -> None:
    """Before the module runs: what no statement of it binds."""
    bound = _bound_in(tree.body)
    _fill(module, [n for n in globals_read(tree) if n not in bound], world)


def fill_globals(module: types.ModuleType, tree: ast.Module, world: RunWorld) -> None:
    """After the module ran: what its statements did not bind after all."""
    _fill(module, globals_read(tree), world)


def _fill(module: types.ModuleType, names: Sequence[str], world: RunWorld) -> None:
    known = vars(module)
    builtins: Dict[str, Any] = known["__builtins__"]
    missing = [n for n in names if n not in known and n not in builtins]
    for name in sorted(missing, key=lambda n: world.roles.of(n) != MODEL):
        known[name] = _unknown(name, world) if world.roles.of(name) is None else world.standins.value(name)


def _unknown(name: str, world: RunWorld) -> Any:
    known = world.value_of(name)
    if known is not MISSING:
        return known
    return UNKNOWN_DEVICE if DEVICE.search(name) else Ghost(name)


@functools.lru_cache(maxsize=256)
def globals_read(tree: ast.Module) -> Tuple[str, ...]:
    """Names that a module's statements and functions read from its globals, in the order of the text."""
    found: Dict[str, None] = {}
    _collect(list(tree.body), frozenset(), found)
    return tuple(found)


def _collect(nodes: Sequence[ast.AST], bound: FrozenSet[str], found: Dict[str, None]) -> None:
    todo: List[ast.AST] = list(reversed(nodes))
    while todo:
        node = todo.pop()
        if isinstance(node, _Function):
            inner = list(ast.iter_child_nodes(node))
            body = node.body if isinstance(node.body, list) else [node.body]
            _collect(inner, bound | _parameters(node) | (_bound_in(body) - _declared_global(node)), found)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load) and node.id not in bound:
                found.setdefault(node.id)
        else:
            todo.extend(reversed(list(ast.iter_child_nodes(node))))


def _parameters(node: Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda]) -> FrozenSet[str]:
    args = node.args
    names = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
    return frozenset(names | {a.arg for a in (args.vararg, args.kwarg) if a is not None})


def _declared_global(node: ast.AST) -> Set[str]:
    return {name for child in ast.walk(node) if isinstance(child, ast.Global) for name in child.names}


def _bound_in(body: List[Any]) -> FrozenSet[str]:
    """Names that the statements of one scope bind; functions and classes by their name only."""
    names: Set[str] = set()
    todo: List[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {a.asname or a.name.split(".")[0] for a in node.names}
        todo.extend(ast.iter_child_nodes(node))
    return frozenset(names)
