"""Moving a call to after another one: the remedy of the order rules, made with libcst.

What is moved is the statement that holds the call (with an ``if`` or ``with`` around it that holds nothing else),
the comments above it, and the statements that need its result. The move is refused (None) where it would cross
something it does not understand: a new binding of a name the statement reads, or a way out of the block.
"""

from __future__ import annotations

import ast
import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from gradlint.move_names import binds, callee, count, covers, leaves, reads
from gradlint.move_write import Block, Insertion, Writer
from gradlint.rule import Location, SourceEdit

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


class _Refused(Exception):
    """The edit cannot be made."""


def move_after(
    text: str, what: Location, after: Sequence[Location], before: Sequence[Location], scaled: bool = False
) -> SourceEdit | None:
    """Move the call at ``what`` to after the calls ``after`` (backward) and ahead of the calls ``before`` (steps).

    With ``scaled`` the gradients are multiplied by a loss scale until an ``unscale_``: the call goes after it, and
    where there is none one is written. None where the move is refused.
    """
    try:
        module = cst.parse_module(text)
        return _Mover(text, module, scaled).run(what, tuple(after), tuple(before))
    except (_Refused, cst.ParserSyntaxError, SyntaxError, RecursionError):
        return None


class _Mover:
    """One move in one text."""

    def __init__(self, text: str, module: cst.Module, scaled: bool) -> None:
        self.text = text
        self.module = module
        self.scaled = scaled
        wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
        self.ranges: Mapping[cst.CSTNode, CodeRange] = wrapper.resolve(PositionProvider)
        self.crossed: list[cst.CSTNode] = []

    def run(self, what: Location, after: tuple[Location, ...], before: tuple[Location, ...]) -> SourceEdit:
        block, index = self.meet(self.module, what, after)
        holder = block.body[index]
        assert isinstance(holder, cst.BaseStatement)
        small = self.held(holder, what)
        insertions = self.plan(block, index + 1, after, before, holder)
        remainder = self.remainder(holder, small)
        first = holder
        if remainder is not None and isinstance(holder, cst.SimpleStatementLine):
            first = cst.SimpleStatementLine([small.with_changes(semicolon=_DEFAULT)])
            self.crossed[:0] = holder.body[list(holder.body).index(small) + 1 :]
        moved = [first, *self.carry(block, index, first)]
        self.check(moved, insertions)
        safe = all(self.understood(node) for node in self.crossed if node not in moved)
        safe = safe and not any(insertion.unscale or insertion.nested for insertion in insertions)
        writer = Writer(self.text, self.module, self.ranges, holder)
        return writer.write(block, remainder, moved, insertions, "safe" if safe else "unsafe")

    # -- where things stand

    def contains(self, node: cst.CSTNode, place: Location) -> bool:
        span = self.ranges[node]
        at = (place.line, place.column - 1)
        return (span.start.line, span.start.column) <= at < (span.end.line, span.end.column)

    def holds(self, node: cst.CSTNode, places: Sequence[Location]) -> bool:
        return any(self.contains(node, place) for place in places)

    def meet(self, block: Block, what: Location, after: Sequence[Location]) -> tuple[Block, int]:
        """The innermost block in which the call and the calls it goes after stand in different statements."""
        for index, child in enumerate(block.body):
            if not self.contains(child, what):
                continue
            if not self.holds(child, after):
                return block, index
            for inner in _blocks(child, functions=True):
                if self.contains(inner, what):
                    if not all(self.contains(inner, place) for place in after):
                        raise _Refused
                    return self.meet(inner, what, after)
        raise _Refused

    def held(self, holder: cst.CSTNode, what: Location) -> cst.BaseSmallStatement:
        """The small statement with the call, if the holder holds nothing else that matters."""
        if isinstance(holder, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
            for small in holder.body:
                if self.contains(small, what) and self.plain(small, what):
                    return small
            raise _Refused
        if isinstance(holder, cst.If) and holder.orelse is None:
            return self.alone(holder.body, what)
        if isinstance(holder, cst.With) and holder.asynchronous is None:
            return self.alone(holder.body, what)
        raise _Refused

    def alone(self, body: cst.BaseSuite, what: Location) -> cst.BaseSmallStatement:
        """As :meth:`held`, inside an ``if`` or ``with``: beside the call only statements that need its result."""
        if not isinstance(body, cst.IndentedBlock):
            small = self.held(body, what)
            if len(body.body) > 1:
                raise _Refused
            return small
        inner = next((child for child in body.body if self.contains(child, what)), None)
        if inner is None:
            raise _Refused
        small = self.held(inner, what)
        result = binds(self.tree(small))
        for child in body.body:
            if child is not inner and not (reads(self.tree(child)) & result):
                raise _Refused
        return small

    def plain(self, small: cst.BaseSmallStatement, what: Location) -> bool:
        """Whether a statement is the call, or keeps its result: ``norm = clip(...)``, ``norm = clip(...).item()``."""
        if isinstance(small, cst.Expr):
            value: cst.BaseExpression | None = small.value
        elif isinstance(small, cst.Assign) or (isinstance(small, cst.AnnAssign) and small.value is not None):
            value = small.value
        else:
            return False
        while value is not None and self.start(value) == self.start_of(what):
            if isinstance(value, cst.Call) and self.end(value) == (what.end_line, what.end_column - 1):
                return True
            if isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and not value.args:
                value = value.func.value
            elif isinstance(value, cst.Attribute):
                value = value.value
            else:
                return False
        if isinstance(value, cst.Call) and isinstance(value.func, cst.Name) and value.func.value == "float":
            inner = value.args[0].value if len(value.args) == 1 else None
            return isinstance(inner, cst.Call) and self.start(inner) == self.start_of(what)
        return False

    def start(self, node: cst.CSTNode) -> tuple[int, int]:
        return self.ranges[node].start.line, self.ranges[node].start.column

    def end(self, node: cst.CSTNode) -> tuple[int, int]:
        return self.ranges[node].end.line, self.ranges[node].end.column

    def start_of(self, place: Location) -> tuple[int, int]:
        return place.line, place.column - 1

    def remainder(self, holder: cst.CSTNode, small: cst.BaseSmallStatement) -> cst.SimpleStatementLine | None:
        """What stays of ``clip(...); optimizer.zero_grad()``."""
        if not isinstance(holder, cst.SimpleStatementLine) or len(holder.body) == 1:
            return None
        rest = [other for other in holder.body if other is not small]
        rest[-1] = rest[-1].with_changes(semicolon=_DEFAULT)
        return holder.with_changes(body=rest)

    # -- where the call goes

    def plan(
        self, block: Block, low: int, after: Sequence[Location], before: Sequence[Location], holder: cst.CSTNode | None
    ) -> list[Insertion]:
        """After the last backward ahead of the first step; the statements passed on the way are noted as crossed."""
        backward = [k for k in range(low, len(block.body)) if self.holds(block.body[k], after)]
        steps = [k for k in range(low, len(block.body)) if self.holds(block.body[k], before)]
        steps = [k for k in steps if backward and k >= backward[0]]
        if not backward:
            raise _Refused
        first = steps[0] if steps else len(block.body)
        last = max((k for k in backward if k <= first), default=first)
        self.crossed.extend(block.body[low:last])
        if last == first:
            return self.inside(block.body[last], after, before)
        self.crossed.append(block.body[last])
        return self.between(block, last + 1, first, before, holder)

    def inside(self, node: cst.CSTNode, after: Sequence[Location], before: Sequence[Location]) -> list[Insertion]:
        """Into a compound statement that holds the backward and the step."""
        found: list[Insertion] = []
        for inner in _blocks(node):
            if self.holds(inner, after) != self.holds(inner, before):
                raise _Refused
            if self.holds(inner, after):
                found.extend(self.plan(inner, 0, after, before, None))
        if not found:
            raise _Refused
        return [dataclasses.replace(insertion, nested=True) for insertion in found]

    def between(
        self, block: Block, low: int, step: int, before: Sequence[Location], holder: cst.CSTNode | None
    ) -> list[Insertion]:
        """Directly behind the backward if the step is in the same block; else into the guard of the step."""
        for k in range(step - 1, low - 1, -1):
            if self.mentions_unscale(block.body[k]):
                self.crossed.extend(block.body[low : k + 1])
                return [Insertion(block, k + 1, nested=not isinstance(block.body[k], cst.SimpleStatementLine))]
        if step >= len(block.body):
            if self.scaled:
                raise _Refused
            return [Insertion(block, low)]
        target = block.body[step]
        if isinstance(target, cst.SimpleStatementLine):
            return [Insertion(block, low, unscale=self.unscale(target, before))]
        plain = not self.scaled and not self.mentions_unscale(target)
        if plain and (self.same_guard(holder, target) or self.every_branch(target, before)):
            return [Insertion(block, low)]
        self.crossed.extend(block.body[low:step])
        bare = self.same_guard(holder, target)
        found = [
            insertion
            for inner in _blocks(target)
            if self.holds(inner, before)
            for insertion in self.ahead(inner, before)
        ]
        if not found:
            raise _Refused
        return [dataclasses.replace(insertion, nested=True, bare=bare) for insertion in found]

    def ahead(self, block: Block, before: Sequence[Location]) -> list[Insertion]:
        """Directly ahead of the step in its block."""
        step = next(k for k, child in enumerate(block.body) if self.holds(child, before))
        target = block.body[step]
        if isinstance(target, cst.SimpleStatementLine):
            for k in range(step - 1, -1, -1):
                if self.mentions_unscale(block.body[k]):
                    self.crossed.extend(block.body[: k + 1])
                    return [Insertion(block, k + 1)]
            self.crossed.extend(block.body[:step])
            return [Insertion(block, step, unscale=self.unscale(target, before))]
        return self.between(block, 0, step, before, None)

    def unscale(self, line: cst.SimpleStatementLine, before: Sequence[Location]) -> str:
        """``scaler.unscale_(optimizer)`` for a plain ``scaler.step(optimizer)`` of scaled gradients."""
        for small in line.body:
            call = small.value if isinstance(small, (cst.Expr, cst.Assign)) else None
            if not isinstance(call, cst.Call) or not self.holds(small, before):
                continue
            if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "step" or not self.scaled:
                continue
            if len(call.args) != 1 or not isinstance(call.args[0].value, (cst.Name, cst.Attribute)):
                continue
            return f"{self.code(call.func.value)}.unscale_({self.code(call.args[0].value)})"
        if self.scaled and any(isinstance(n, ast.Call) and n.args for n in ast.walk(self.tree(line))):
            raise _Refused
        return ""

    def mentions_unscale(self, node: cst.CSTNode) -> bool:
        return any(isinstance(n, ast.Attribute) and n.attr == "unscale_" for n in ast.walk(self.tree(node)))

    def same_guard(self, holder: cst.CSTNode | None, target: cst.CSTNode) -> bool:
        """Whether the call and the step stand under an ``if`` with the same condition."""
        if not isinstance(holder, cst.If) or not isinstance(target, cst.If) or target.orelse is not None:
            return False
        return self.code(holder.test) == self.code(target.test)

    def every_branch(self, node: cst.CSTNode, before: Sequence[Location]) -> bool:
        """Whether the step is in each branch of an ``if`` with an ``else``."""
        branch = node if isinstance(node, cst.If) else None
        while branch is not None:
            if not self.holds(branch.body, before):
                return False
            if isinstance(branch.orelse, cst.Else):
                return self.holds(branch.orelse.body, before)
            branch = branch.orelse
        return False

    # -- what it takes along and what it may not cross

    def carry(self, block: Block, index: int, moved: cst.BaseStatement) -> list[cst.BaseStatement]:
        """The crossed statements of the block that need the call's result, in order."""
        result = binds(self.tree(moved))
        carried: list[cst.BaseStatement] = []
        for node in block.body[index + 1 :]:
            if node not in self.crossed or not isinstance(node, cst.BaseStatement):
                continue
            tree = self.tree(node)
            if reads(tree) & result:
                if not isinstance(node, (cst.SimpleStatementLine, cst.If)) or not self.understood(node, True):
                    raise _Refused
                carried.append(node)
                result |= binds(tree)
        return carried

    def check(self, moved: Sequence[cst.BaseStatement], insertions: Sequence[Insertion]) -> None:
        trees = [self.tree(node) for node in moved]
        needed = {name for tree in trees for name in reads(tree)}
        bound = {name for tree in trees for name in binds(tree)}
        if any(leaves(tree) for tree in trees):
            raise _Refused
        for node in self.crossed:
            if node in moved:
                continue
            tree = self.tree(node)
            changed = binds(tree)
            if leaves(tree) or changed & bound or reads(tree) & bound:
                raise _Refused
            if any(covers(name, other) for name in changed for other in needed):
                raise _Refused
        if bound and any(insertion.nested for insertion in insertions):
            inside = sum(count(tree, bound) for tree in trees)
            if count(ast.parse(self.text), bound) > inside:
                raise _Refused  # a result that is needed elsewhere must not become conditional

    def understood(self, node: cst.CSTNode, carried: bool = False) -> bool:
        """Whether nothing in a statement touches gradients, but (in a crossed one) backward and ``zero_grad``."""
        tree = self.tree(node)
        for inner in ast.walk(tree):
            if isinstance(inner, (ast.Try, ast.ClassDef, ast.While, ast.AsyncFor, ast.AsyncWith, ast.Await)):
                return False
            if isinstance(inner, ast.Attribute) and inner.attr in {"grad", "param_groups"}:
                return False
            if isinstance(inner, ast.Call):
                name = callee(inner)
                if name in _TOUCHING or (carried and name in {"backward", "manual_backward", "zero_grad"}):
                    return False
        return True

    def code(self, node: cst.CSTNode) -> str:
        return self.module.code_for_node(node)

    def tree(self, node: cst.CSTNode) -> ast.Module:
        """The standard tree of one statement."""
        if isinstance(node, cst.BaseCompoundStatement | cst.SimpleStatementLine):
            node = node.with_changes(leading_lines=[])
        return ast.parse(textwrap.dedent(self.code(node)).strip("; \t"))


def _blocks(node: cst.CSTNode, functions: bool = False) -> Iterator[cst.IndentedBlock]:
    """The blocks of a compound statement."""
    if isinstance(node, (cst.FunctionDef, cst.ClassDef)) and not functions:
        return
    body = getattr(node, "body", None)
    if isinstance(body, cst.IndentedBlock):
        yield body
    for name in ("orelse", "finalbody"):
        part = getattr(node, name, None)
        if part is not None:
            yield from _blocks(part, functions)
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield from _blocks(part, functions)


_DEFAULT = cst.MaybeSentinel.DEFAULT
