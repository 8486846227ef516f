"""What a moved statement passes on its way: whether it may, and whether nothing changes but the fault.

A move is refused where a passed statement binds a name that a moved one reads, reads or binds one that it binds, or
may leave the block. It is safe (:func:`harmless`) where no passed statement may read or write gradients:

* no ``try``, ``while``, ``class``, ``async`` or ``await``, no ``.grad`` and no ``param_groups``;
* no call that is known to touch gradients (a step, ``unscale_``, a hook, a reduction) or has ``grad`` in its name;
* no call that is handed a model, an optimizer or parameters, no method of theirs that is not known, and none of the
  object they belong to: ``evaluate(model)``, ``model.regularize()``, ``self.after_step()``, ``evaluate()``.

Harmless are ``zero_grad``, the calls that the move is about, a scheduler's step, the forward, and what only reports.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence

import libcst as cst

from gradlint.move_names import arguments, binds, callee, chains, count, covers, dotted, leaves, reads
from gradlint.move_source import Refused, Source, Standing
from gradlint.move_write import Insertion

_TOUCHING = frozenset(
    [
        "step",
        "first_step",
        "second_step",
        "unscale_",
        "unscale",
        "register_hook",
        "all_reduce",
        "reduce_gradients",
        "synchronize",
    ]
)
"""Calls that read or write gradients: a move across them is not known to be safe."""

BACKWARD = frozenset(["backward", "manual_backward"])
_NAMED_GRAD = frozenset(["zero_grad", "no_grad", "enable_grad", "set_grad_enabled", "is_grad_enabled"])
"""Calls with ``grad`` in their name that do not need the gradients."""
_PASSIVE = re.compile(
    r"train|eval|to|cuda|cpu|(named_)?(parameters|modules|children|buffers)|state_dict|get_last_lr|time|float|int|str|"
    r"repr|len|bool|id|type|isinstance|hasattr|getattr|format|range|enumerate|zip|items|keys|values"
)
"""Calls that leave gradients alone, whatever they are handed and whose methods they are."""
_REPORTING = re.compile(r"(^|_)(log|print|writ|record|report|summar|meter|metric|scalar|save|append|postfix|desc|info)")
"""How a word in the name of a call begins that reports something."""
_OWNERS = re.compile(r"(model|net|module|optim|param|\bopt\b)", re.IGNORECASE)
"""Names of what has gradients."""
_SCHEDULERS = re.compile(r"sched|warm_?up|^lr_", re.IGNORECASE)
_LOSSES = re.compile(r"loss|criterion", re.IGNORECASE)


def understood(tree: ast.AST, carried: bool = False) -> bool:
    """Whether nothing in a statement is known to touch gradients, but (in a crossed one) backward and ``zero_grad``."""
    touching = _TOUCHING | BACKWARD | {"zero_grad"} if carried else _TOUCHING
    return _simple(tree) and not any(callee(call) in touching for call in _calls(tree))


def harmless(tree: ast.AST, objects: frozenset[str], expected: frozenset[str] = frozenset()) -> bool:
    """Whether a statement surely leaves the gradients of ``objects`` alone: see the module.

    ``expected`` are the calls that the move is about, by what :func:`called` says.
    """
    return _simple(tree) and not any(
        _may_touch(call, objects) for call in _calls(tree) if called(call) not in expected and not schedules(call)
    )


def called(call: ast.Call) -> str:
    """What is called, as text: ``self.optimizer.step``."""
    return ast.unparse(call.func)


def schedules(call: ast.Call) -> bool:
    """Whether a call is the step of a learning-rate scheduler."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "step":
        return False
    return bool(_SCHEDULERS.search((dotted(call.func.value) or "").rsplit(".", 1)[-1]))


def objects_of(tree: ast.AST) -> frozenset[str]:
    """The objects that calls act on: their receivers, and the names in their first argument."""
    found: set[str] = set()
    for call in _calls(tree):
        if isinstance(call.func, ast.Attribute):
            found.update(chains(call.func.value))
        for argument in arguments(call)[:1]:
            found.update(chains(argument))
    return frozenset(found)


def check(source: Source, moved: Sequence[cst.CSTNode], crossed: Iterable[cst.CSTNode], jumps: bool = False) -> None:
    """Refuse a move that would change what a name means; with ``jumps`` a way out of the block may be passed."""
    trees = [source.tree(node) for node in moved]
    needed = {name for tree in trees for name in reads(tree)}
    bound = {name for tree in trees for name in binds(tree)}
    if any(leaves(tree) for tree in trees):
        raise Refused
    for node in crossed:
        if node in moved:
            continue
        tree = source.tree(node)
        changed = binds(tree)
        if leaves(tree, jumps=not jumps) or changed & bound or reads(tree) & bound:
            raise Refused
        if any(covers(name, other) for name in changed for other in needed):
            raise Refused


def check_result(
    source: Source, moved: Sequence[cst.CSTNode], scope: ast.AST, insertions: Sequence[Insertion] = ()
) -> None:
    """Refuse to make a result conditional that is read elsewhere in ``scope``, where it may then be missing.

    What follows in the blocks of the insertions has it.
    """
    trees = [source.tree(node) for node in moved]
    bound = {name for tree in trees for name in binds(tree)}
    if bound:
        follow = [source.tree(node) for place in insertions for node in place.following() if node not in moved]
        if count(scope, bound) > sum(count(tree, bound) for tree in (*trees, *follow)):
            raise Refused


def scope_of(source: Source, way: Sequence[Standing], moved: Sequence[cst.CSTNode]) -> ast.AST:
    """Where what the moved statements bind may be read: in their function, or everywhere."""
    local = all("." not in name for node in moved for name in binds(source.tree(node)))
    functions = [at.statement for at in way if isinstance(at.statement, cst.FunctionDef)]
    if local and functions:
        tree = source.tree(functions[-1])
        if not any(isinstance(node, (ast.Global, ast.Nonlocal)) for node in ast.walk(tree)):
            return tree
    return ast.parse(source.text)


def carry(source: Source, moved: cst.CSTNode, following: Iterable[cst.CSTNode]) -> list[cst.BaseStatement]:
    """Those of the statements behind a moved one that need its result, in order."""
    result = binds(source.tree(moved))
    carried: list[cst.BaseStatement] = []
    for node in following:
        tree = source.tree(node)
        if reads(tree) & result:
            if not isinstance(node, (cst.SimpleStatementLine, cst.If)) or not understood(tree, True):
                raise Refused
            carried.append(node)
            result |= binds(tree)
    return carried


# -- what a call may do


def _simple(tree: ast.AST) -> bool:
    for inner in ast.walk(tree):
        if isinstance(inner, (ast.Try, ast.ClassDef, ast.While, ast.AsyncFor, ast.AsyncWith, ast.Await)):
            return False
        if isinstance(inner, ast.Attribute) and inner.attr in {"grad", "param_groups"}:
            return False
    return True


def _may_touch(call: ast.Call, objects: frozenset[str]) -> bool:
    name = callee(call)
    if name in _NAMED_GRAD:
        return False
    if name in _TOUCHING | BACKWARD or "grad" in name.lower():
        return True
    if _PASSIVE.fullmatch(name) or _REPORTING.search(name.lower()):
        return False
    if any(_owner(it, objects) for argument in arguments(call) for it in chains(argument)):
        return True
    if not isinstance(call.func, ast.Attribute):
        return not call.args and not call.keywords
    if _LOSSES.search(name) or _owner(dotted(call.func) or "", objects, False):
        return False
    return any(_owner(it, objects) for it in chains(call.func.value))


def _owner(name: str, objects: frozenset[str], holders: bool = True) -> bool:
    """Whether a name is that of something with gradients, or of what holds it."""
    if name in objects or _OWNERS.search(name.rsplit(".", 1)[-1]):
        return True
    return holders and any(it.startswith(f"{name}.") for it in objects)


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [inner for inner in ast.walk(tree) if isinstance(inner, ast.Call)]
