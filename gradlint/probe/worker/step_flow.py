"""Where a guard leads: read from the syntax, so that an unknown guard is answered towards the calls of interest.

Lines are *hot* when they hold a call the rule speaks of, or call a function of the slice that does. A guard is
*relevant* when one of its branches holds a training event or leaves the function or loop.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

from step_called import Calls
from step_expressions import window_counters
from step_nodes import dotted
from step_text import Definition, Nodes, Repeating, nodes_of

_JUMPS = (ast.Return, ast.Continue, ast.Break, ast.Raise)
_Block = Sequence[ast.stmt]
Place = Tuple[str, int]
"""A module's name and a line in it."""


@dataclass
class Flow:
    """Answers for guards: ``direction[place]`` is the outcome of the test that leads to the hot lines."""

    direction: Dict[Place, bool] = field(default_factory=dict)
    tests: Dict[Place, str] = field(default_factory=dict)
    """The text of each test that decides on events."""
    hot: Dict[str, Optional[bool]] = field(default_factory=dict)
    """For the text of a test: how it comes out where that leads to the hot lines; None where both ways do."""
    relevant: Set[Place] = field(default_factory=set)
    loops: Set[str] = field(default_factory=set)
    """Names of functions that hold a loop round events."""
    counting: Set[Place] = field(default_factory=set)
    """Guards that ask a counter, which comes to what they wait for by itself."""
    training: Set[Place] = field(default_factory=set)
    """Loops that hold a training event."""
    stepping: Set[Place] = field(default_factory=set)
    """Loops that hold an optimizer step."""
    steps: bool = False
    """Whether there is an optimizer step at all."""
    backprop: Set[str] = field(default_factory=set)
    """Names of functions that hold a backward pass, or call one that does."""
    eventful: Set[str] = field(default_factory=set)
    """Names of functions that hold an event, or call one that does."""
    bound_later: Dict[str, Set[str]] = field(default_factory=dict)
    """For each class: the attributes that methods other than ``__init__`` bind, or that are surely no None."""
    trains: Callable[[ast.AST], bool] = bool
    """Whether a node holds a training event."""

    def wanted(self, place: Place) -> Optional[bool]:
        """The outcome of the test at a place that leads to the hot lines, there or where it is asked again."""
        known = self.hot.get(self.tests.get(place, ""))
        return known if known is not None else self.direction.get(place)


def read(trees: Dict[str, ast.Module], entry: str, lines: Iterable[int]) -> Flow:
    """The flow facts of all modules, with ``lines`` of the module ``entry`` as the calls of interest."""
    flow = Flow()
    calls = Calls()
    flow.trains = calls.events
    wanted = set(lines)
    definitions = [(name, node) for name, tree in trees.items() for node in nodes_of(tree).functions]
    holders = {n.name for name, n in definitions if name == entry and any(_spans(n, line) for line in wanted)}
    hot = _callers(definitions, holders, calls)
    flow.eventful = _callers(definitions, {n.name for _, n in definitions if calls.events(n)}, calls)
    flow.backprop = _callers(definitions, {n.name for _, n in definitions if calls.backward(n)}, calls)
    flow.steps = any(calls.steps(tree) for tree in trees.values())
    steppers = _callers(definitions, {n.name for _, n in definitions if calls.steps(n)}, calls)
    if not any(calls.backward(tree) for tree in trees.values()):
        calls.hidden = True
        flow.backprop = flow.eventful
    for name, tree in trees.items():
        for owner in nodes_of(tree).classes:
            flow.bound_later.setdefault(owner.name, set()).update(_bound_later(owner), _needed(owner))
        counters = window_counters(tree)
        flow.counting.update(
            (name, n.test.lineno) for n in nodes_of(tree).branches if any(dotted(t) in counters for t in _parts(n.test))
        )
        reader = _Reader(name, wanted if name == entry else set(), hot, flow, calls)
        reader.steppers = steppers
        reader.block(tree.body, [])
        reader.loops(nodes_of(tree))
        reader.scalers(nodes_of(tree))
    return flow


def _bound_later(owner: ast.ClassDef) -> Iterable[str]:
    for method in owner.body:
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and method.name != "__init__":
            for node in ast.walk(method):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self":
                    yield node.attr


def _needed(owner: ast.ClassDef) -> Iterable[str]:
    """The attributes whose own attributes or items a class asks for: ``self.cfg.lr``."""
    asked = (n.value for n in ast.walk(owner) if isinstance(n, (ast.Attribute, ast.Subscript)))
    return (v.attr for v in asked if isinstance(v, ast.Attribute) and dotted(v.value) == "self")


def _parts(test: ast.expr) -> Iterable[ast.expr]:
    return (n for n in ast.walk(test) if isinstance(n, ast.expr))


def _callers(definitions: Sequence[Tuple[str, Definition]], found: Set[str], calls: Calls) -> Set[str]:
    """The names ``found``, and those of functions that call them, transitively."""
    found = set(found)
    grown = True
    while grown:
        grown = False
        for _, node in definitions:
            if node.name not in found and calls.names(node) & found:
                found.add(node.name)
                grown = True
    return found


def _lines_of(node: ast.expr) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _spans(node: ast.AST, line: int) -> bool:
    return getattr(node, "lineno", 0) <= line <= (getattr(node, "end_lineno", 0) or 0)


class _Reader:
    """Walks the statements of one module."""

    def __init__(self, module: str, lines: Set[int], hot: Set[str], flow: Flow, calls: Calls) -> None:
        self.calls = calls
        self.steppers: Set[str] = set()
        """Names of functions that step, or call one that does."""
        self.module = module
        self.lines = lines
        self.hot = hot
        self.flow = flow

    def scalers(self, nodes: Nodes) -> None:
        """Whether a scaler is there, and on, matters for training wherever it is decided."""
        for call in nodes.calls:
            if any((dotted(n) or "").endswith("GradScaler") for n in (call.func, *call.args)):
                for line in _lines_of(call):
                    self.flow.relevant.add((self.module, line))
                    self.flow.direction.setdefault((self.module, line), True)
        for choice in nodes.conditionals:
            if any("GradScaler" in self.calls.names(n) for n in (choice.body, choice.orelse)):
                self.flow.relevant.update((self.module, line) for line in _lines_of(choice))

    def loops(self, nodes: Nodes) -> None:
        """Which functions loop over training steps, and which conditional expressions lead to events."""
        for loop, functions in nodes.repeating:
            if functions and self._repeats(loop):
                self.flow.loops.update(f.name for f in functions)
        for choice in nodes.conditionals:
            if self._trains([choice.body, choice.orelse]):
                self._guard(choice, [choice.body], [choice.orelse], [])

    def block(self, statements: _Block, after: List[_Block]) -> None:
        """``after``: what runs, within the same function and loop, once this block is left."""
        for number, node in enumerate(statements):
            if isinstance(node, (ast.For, ast.AsyncFor, ast.While)) and self._trains(node.body):
                self.flow.training.add((self.module, node.lineno))
                if any(self.calls.steps(n) or bool(self.calls.names(n) & self.steppers) for n in node.body):
                    self.flow.stepping.add((self.module, node.lineno))
            rest = [statements[number + 1 :], *after]
            if isinstance(node, ast.If):
                self._guard(node, node.body, node.orelse, rest)
                self.block(node.body, rest)
                self.block(node.orelse, rest)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
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

    def _repeats(self, node: Repeating) -> bool:
        """Whether this is a loop over training steps, and not over a few objects that are written out."""
        if not isinstance(node, ast.While) and isinstance(node.iter, (ast.Tuple, ast.List)):
            return False
        return any(self.calls.backward(n) or bool(self.calls.names(n) & self.flow.backprop) for n in node.body)

    def _guard(
        self,
        node: Union[ast.If, ast.While, ast.IfExp],
        body: Sequence[ast.AST],
        other: Sequence[ast.AST],
        rest: List[_Block],
    ) -> None:
        place = (self.module, node.test.lineno)
        text = ast.unparse(node.test)
        self.flow.tests[place] = self.flow.tests[self.module, node.lineno] = text
        for branch, way in ((body, True), (other, False)):
            if not isinstance(node, ast.While) and self._is_hot(branch):
                self.flow.hot[text] = way if self.flow.hot.get(text, way) is way else None
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
        return any(
            any(_spans(node, line) for line in self.lines) or bool(self.calls.names(node) & self.hot) for node in nodes
        )

    def _trains(self, nodes: Sequence[ast.AST]) -> bool:
        return any(self.calls.events(n) or bool(self.calls.names(n) & self.flow.eventful) for n in nodes)


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
