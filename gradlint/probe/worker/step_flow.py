"""Where a guard leads: read from the syntax, so that an unknown guard is answered towards the calls of interest.

Lines are *hot* when they hold a call the rule speaks of, or call a function of the slice that does. A guard is
*relevant* when one of its branches holds a training event or leaves the function or loop.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

from step_rewrite import dotted

EVENTS = frozenset(
    "backward manual_backward step zero_grad unscale_ clip_grad_norm_ clip_grad_norm clip_grad_value_ "
    "clip_gradients clip_grads_with_norm_ clip_grad".split()
)
_JUMPS = (ast.Return, ast.Continue, ast.Break, ast.Raise)
_QUIET = re.compile(r"sched|^lr|_lr|prof|ema|env|metric|bar|writer|meter", re.IGNORECASE)
_Block = Sequence[ast.stmt]
Place = Tuple[str, int]
"""A module's name and a line in it."""


@dataclass
class Flow:
    """Answers for guards: ``direction[place]`` is the outcome of the test that leads to the hot lines."""

    direction: Dict[Place, bool] = field(default_factory=dict)
    relevant: Set[Place] = field(default_factory=set)
    loops: Set[str] = field(default_factory=set)
    """Names of functions that hold a loop round events."""
    eventful: Set[str] = field(default_factory=set)
    """Names of functions that hold an event, or call one that does."""


def read(trees: Dict[str, ast.Module], entry: str, lines: Iterable[int]) -> Flow:
    """The flow facts of all modules, with ``lines`` of the module ``entry`` as the calls of interest."""
    flow = Flow()
    hot = _hot_functions(trees, entry, set(lines))
    flow.eventful = _closure(trees, lambda name, node: _has_event(node))
    for name, tree in trees.items():
        wanted = set(lines) if name == entry else set()
        reader = _Reader(name, wanted, hot, flow)
        reader.block(tree.body, [])
        reader.scalers(tree)
    return flow


def is_event_call(node: ast.AST) -> bool:
    """A call whose name is that of a training event."""
    if not isinstance(node, ast.Call):
        return False
    func = node.func
    name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
    if name not in EVENTS and not name.startswith("clip_grad"):
        return False
    if name == "step" and isinstance(func, ast.Attribute):
        owner = dotted(func.value) or ""
        return not _QUIET.search(owner.rsplit(".", 1)[-1])
    return True


def _has_event(node: ast.AST) -> bool:
    return any(is_event_call(n) for n in ast.walk(node))


def _called(node: ast.AST) -> Set[str]:
    """Last names of everything called in ``node``, and of functions handed over as arguments."""
    names: Set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Call):
            if isinstance(child.func, ast.Attribute) and child.func.attr in ("train", "eval"):
                continue  # a mode, not a function of the program
            names.add((dotted(child.func) or "").rsplit(".", 1)[-1])
            names.update(a.id for a in child.args if isinstance(a, ast.Name))
    return names - {""}


def _definitions(trees: Dict[str, ast.Module]) -> List[Tuple[str, Union[ast.FunctionDef, ast.AsyncFunctionDef]]]:
    return [
        (name, node)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def _closure(trees: Dict[str, ast.Module], starts: object) -> Set[str]:
    """Names of functions for which ``starts`` holds, and of those that call them, transitively."""
    definitions = _definitions(trees)
    found = {node.name for name, node in definitions if starts(name, node)}  # type: ignore[operator]
    grown = True
    while grown:
        grown = False
        for _, node in definitions:
            if node.name not in found and _called(node) & found:
                found.add(node.name)
                grown = True
    return found


def _hot_functions(trees: Dict[str, ast.Module], entry: str, lines: Set[int]) -> Set[str]:
    def holds(name: str, node: ast.AST) -> bool:
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) or 0
        return name == entry and any(first <= line <= last for line in lines)

    return _closure(trees, holds)


class _Reader:
    """Walks the statements of one module."""

    def __init__(self, module: str, lines: Set[int], hot: Set[str], flow: Flow) -> None:
        self.module = module
        self.lines = lines
        self.hot = hot
        self.flow = flow

    def scalers(self, tree: ast.Module) -> None:
        """Whether a scaler is there, and on, matters for training wherever it is decided."""
        for node in ast.walk(tree):
            if isinstance(node, (ast.Call, ast.IfExp)) and any(
                isinstance(n, (ast.Name, ast.Attribute)) and (dotted(n) or "").endswith("GradScaler")
                for n in ast.walk(node)
            ):
                for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                    self.flow.relevant.add((self.module, line))

    def block(self, statements: _Block, after: List[_Block]) -> None:
        """``after``: what runs, within the same function and loop, once this block is left."""
        for number, node in enumerate(statements):
            rest = [statements[number + 1 :], *after]
            if isinstance(node, ast.If):
                self._guard(node, node.body, node.orelse, rest)
                self.block(node.body, rest)
                self.block(node.orelse, rest)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if any(isinstance(n, (ast.For, ast.While)) and self._trains([n]) for n in ast.walk(node)):
                    self.flow.loops.add(node.name)
                self.block(node.body, [])
            elif isinstance(node, (ast.For, ast.AsyncFor)):
                self.block(node.body, [])
                self.block(node.orelse, rest)
            elif isinstance(node, ast.While):
                self._guard(node, node.body, [], rest)
                self.block(node.body, [])
            else:
                for name in ("body", "orelse", "finalbody"):
                    inner = getattr(node, name, None)
                    if isinstance(inner, list):
                        self.block(inner, rest)
                for handler in getattr(node, "handlers", []):
                    self.block(handler.body, rest)
                for case in getattr(node, "cases", []):
                    self.block(case.body, rest)
                self._expressions(node)

    def _expressions(self, node: ast.stmt) -> None:
        for child in ast.walk(node):
            if isinstance(child, ast.IfExp) and self._trains([child.body, child.orelse]):
                self._guard(child, [child.body], [child.orelse], [])

    def _guard(
        self, node: Union[ast.If, ast.While, ast.IfExp], body: Sequence[ast.AST], other: Sequence[ast.AST], rest: List[_Block]
    ) -> None:
        place = (self.module, node.test.lineno)
        answer = self._direction(node, body, other, rest)
        if answer is not None:
            self.flow.direction.setdefault(place, answer)
            self.flow.direction.setdefault((self.module, node.lineno), answer)
        leaves = _leaves(body) or _leaves(other)
        if self._trains(body) or self._trains(other) or (leaves and any(self._trains(r) for r in rest)):
            for line in range(node.lineno, (node.test.end_lineno or node.lineno) + 1):
                self.flow.relevant.add((self.module, line))

    def _direction(
        self, node: ast.AST, body: Sequence[ast.AST], other: Sequence[ast.AST], rest: List[_Block]
    ) -> Optional[bool]:
        if self._is_hot(body):
            return True
        if self._is_hot(other):
            return False
        if isinstance(node, ast.While):
            return True if self._trains(body) else None
        ahead = any(self._is_hot(r) for r in rest) or any(self._trains(r) for r in rest)
        if _leaves(body) and (ahead or not self._trains(body)):
            return False
        if other and _leaves(other) and (ahead or not self._trains(other)):
            return True
        if self._trains(body) != self._trains(other):
            return self._trains(body)
        return None

    def _is_hot(self, nodes: Sequence[ast.AST]) -> bool:
        for node in nodes:
            first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) or 0
            if any(first <= line <= last for line in self.lines) or _called(node) & self.hot:
                return True
        return False

    def _trains(self, nodes: Sequence[ast.AST]) -> bool:
        return any(_has_event(n) or bool(_called(n) & self.flow.eventful) for n in nodes)


def _leaves(block: Sequence[ast.AST]) -> bool:
    """Whether a block ends by leaving the function, the loop or the program."""
    if not block:
        return False
    last = block[-1]
    if isinstance(last, _JUMPS):
        return True
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        return (dotted(last.value.func) or "") in ("sys.exit", "exit", "quit", "os._exit")
    return False
