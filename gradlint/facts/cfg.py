"""A control-flow graph of Python statements, and the dataflow solver that runs on it.

The graph knows nothing of training. A reader says what one expression or statement header means:
events (they become nodes), the body of a helper to build in place of its call, or the end of the path.

Two simplifications, both on purpose: every loop runs at least once (a training loop that never turns has no fault
to report), and the operands of ``and``, ``or`` and conditional expressions all run.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, Literal, Protocol, TypeVar

E = TypeVar("E")
F = TypeVar("F")
S = TypeVar("S")
E_co = TypeVar("E_co", covariant=True)

MAX_NODES = 2500
"""A graph larger than this is cut short: the builder stops splicing helpers, the reader is told so."""


class Stop(enum.Enum):
    """The path ends here: ``sys.exit()`` and its like."""

    STOP = "stop"


@dataclasses.dataclass(frozen=True)
class Splice(Generic[F]):
    """The statements of a called helper, read with a frame of their own."""

    body: Sequence[ast.stmt]
    frame: F
    key: object = None
    """What is spliced, for :meth:`Reader.was_silent`."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """One thing that holds behind a test: ``if scaler and not done`` gives ``scaler`` true and ``done`` false."""

    key: str
    """The condition without its negation; the same text is the same condition until one of its names is bound anew."""
    truth: bool
    names: frozenset[str] = frozenset()
    """The names that the condition reads."""
    counter: bool = False
    """Whether it tells micro-batches apart: ``(i + 1) % accumulation_steps == 0``."""
    synced: bool = False
    """Whether it asks a wrapper for that: ``accelerator.sync_gradients``."""


class Reader(Protocol[E_co, F]):
    """What the builder asks about one expression, or about the header of one statement."""

    def read(self, node: ast.expr | ast.stmt, frame: F, room: bool) -> Sequence[E_co | Splice[F] | Stop]:
        """The items of ``node`` in the order they run; without ``room`` no more splices."""
        ...

    def comprehensions(self, node: ast.expr | ast.stmt, frame: F) -> Sequence[ast.For]:
        """The comprehensions of ``node`` whose items are worth a loop of their own; :meth:`read` leaves them out."""
        ...

    def managed(self, node: ast.With | ast.AsyncWith, frame: F, entering: bool) -> Sequence[E_co]:
        """What the context managers of ``node`` do as its block begins, or as it ends."""
        ...

    def was_silent(self, key: object) -> None:
        """Something that was spliced in whole had no events: it need not be spliced again."""
        ...

    def decided(self, test: ast.expr, frame: F) -> bool | None:
        """Whether something outside of the text of ``test`` decides it."""
        ...

    def guards(self, test: ast.expr, truth: bool, frame: F) -> Sequence[Guard]:
        """What holds where ``test`` came out as ``truth``."""
        ...


Label = Literal["entry", "exit", "loop", "turn", "join", "event", "assume", "bind"]


@dataclasses.dataclass(frozen=True)
class Node(Generic[E_co]):
    """One point of the program. ``loops`` are the enclosing loops, outermost first."""

    index: int
    label: Label
    event: E_co | None
    loops: tuple[int, ...]
    guards: tuple[Guard, ...] = ()
    """``assume``: what the branch taken says."""
    bound: frozenset[str] = frozenset()
    """``bind``: names of guards that get another value here."""


@dataclasses.dataclass(frozen=True)
class Graph(Generic[E]):
    """Nodes and their successors. ``heads[i]`` is the node at which each turn of loop ``i`` begins."""

    nodes: tuple[Node[E], ...]
    successors: tuple[tuple[int, ...], ...]
    entry: int
    exit: int
    heads: tuple[int, ...]
    frames: tuple[object, ...] = ()
    """The frame in which each loop stands."""
    bound: tuple[frozenset[str], ...] = ()
    targets: tuple[frozenset[str], ...] = ()
    """The names that each loop binds by itself, turn by turn."""
    """The names that each loop binds in its turns."""

    def events(self) -> Iterable[tuple[int, E]]:
        """Every reachable event with its node, in the order the graph was built (source order)."""
        for node in self.nodes:
            if node.event is not None:
                yield node.index, node.event

    def turn_of(self, loop: int | None) -> Graph[E]:
        """One turn of a loop as a graph of its own: it starts at the head, and neither repeats nor leaves.

        ``None`` stands for the whole graph, read as one turn.
        """
        if loop is None:
            return self
        head = self.heads[loop]
        inside = {node.index for node in self.nodes if loop in node.loops}
        kept = tuple(
            tuple(target for target in targets if target in inside and target != head) if index in inside else ()
            for index, targets in enumerate(self.successors)
        )
        return dataclasses.replace(self, successors=kept, entry=head)


def solve(
    graph: Graph[E], start: Mapping[int, S], transfer: Callable[[Node[E], S], S | None], join: Callable[[S, S], S]
) -> dict[int, S]:
    """The state before each reached node, to a fixed point.

    ``start`` gives the states the analysis begins with; ``transfer`` turns the state before a node into the state
    after it, ``None`` ends the path. ``join`` must be monotone over a finite set of states.
    """
    before: dict[int, S] = dict(start)
    work = deque(start)
    waiting = set(start)
    while work:
        index = work.popleft()
        waiting.discard(index)
        after = transfer(graph.nodes[index], before[index])
        if after is None:
            continue
        for target in graph.successors[index]:
            merged = join(before[target], after) if target in before else after
            if target not in before or merged != before[target]:
                before[target] = merged
                if target not in waiting:
                    waiting.add(target)
                    work.append(target)
    return before


def build(body: Sequence[ast.stmt], frame: F, reader: Reader[E, F]) -> Graph[E]:
    """The control-flow graph of ``body``. Statements that no path reaches have no nodes."""
    builder: _Builder[E, F] = _Builder(reader)
    builder.suite(body, frame)
    builder.link(builder.here, builder.exit)
    return builder.graph()


@dataclasses.dataclass(frozen=True)
class _Loop:
    turn: int
    after: int


@dataclasses.dataclass(frozen=True)
class _Call:
    back: int


@dataclasses.dataclass(frozen=True)
class _Try:
    handlers: int


@dataclasses.dataclass(frozen=True)
class _Finally(Generic[F]):
    body: Sequence[ast.stmt]
    frame: F


class _Builder(Generic[E, F]):
    """Holds the one mutable thing: the graph so far and ``here``, the node the next one follows (None: dead code)."""

    def __init__(self, reader: Reader[E, F]) -> None:
        self.reader = reader
        self.nodes: list[Node[E]] = []
        self.successors: list[list[int]] = []
        self.entered: set[int] = set()
        self.heads: list[int] = []
        self.frames: list[F] = []
        self.bound: list[set[str]] = []
        self.targets: list[frozenset[str]] = []
        self.loops: tuple[int, ...] = ()
        self.blocks: list[_Loop | _Call | _Try | _Finally[F]] = []
        self.guarding: set[str] = set()
        """Names that the guards met so far read."""
        self.entry = self.node("entry")
        self.exit = self.node("exit")
        self.here: int | None = self.entry

    def graph(self) -> Graph[E]:
        successors = tuple(tuple(dict.fromkeys(targets)) for targets in self.successors)
        bound = tuple(frozenset(names) for names in self.bound)
        return Graph(
            tuple(self.nodes),
            successors,
            self.entry,
            self.exit,
            tuple(self.heads),
            tuple(self.frames),
            bound,
            tuple(self.targets),
        )

    def node(
        self,
        label: Label,
        event: E | None = None,
        guards: tuple[Guard, ...] = (),
        bound: frozenset[str] = frozenset(),
    ) -> int:
        self.nodes.append(Node(len(self.nodes), label, event, self.loops, guards, bound))
        self.successors.append([])
        return len(self.nodes) - 1

    def link(self, source: int | None, target: int) -> None:
        if source is not None:
            self.successors[source].append(target)
            self.entered.add(target)

    def resume(self, join: int) -> None:
        """Go on from a join, if any path reaches it."""
        self.here = join if join in self.entered else None

    def suite(self, body: Sequence[ast.stmt], frame: F) -> None:
        for statement in body:
            if self.here is None:
                return
            self.statement(statement, frame)

    def items(self, node: ast.expr | ast.stmt, frame: F) -> None:
        for loop in self.reader.comprehensions(node, frame):
            self.loop(loop, frame)
            if self.here is None:
                return
        for item in self.reader.read(node, frame, len(self.nodes) < MAX_NODES):
            if self.here is None:
                return
            if isinstance(item, Stop):
                self.here = None
            elif isinstance(item, Splice):
                self.splice(item)
            else:
                index = self.node("event", item)
                self.link(self.here, index)
                self.here = index
                self.may_raise()

    def splice(self, item: Splice[F]) -> None:
        back = self.node("join")
        self.blocks.append(_Call(back))
        begun = len(self.nodes)
        self.suite(item.body, item.frame)
        self.blocks.pop()
        if self.here is not None and not any(node.event is not None for node in self.nodes[begun:]):
            self.reader.was_silent(item.key)
        self.link(self.here, back)
        self.resume(back)

    def may_raise(self) -> None:
        for block in reversed(self.blocks):
            if isinstance(block, _Try):
                self.link(self.here, block.handlers)
                return

    def statement(self, node: ast.stmt, frame: F) -> None:
        if isinstance(node, ast.If):
            self.branch(node, frame)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            self.loop(node, frame)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                self.items(item.context_expr, frame)
            self.around(node, frame, entering=True)
            self.suite(node.body, frame)
            self.around(node, frame, entering=False)
        elif isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
            self.attempt(node, frame)  # type: ignore[arg-type]
        elif isinstance(node, ast.Match):
            self.match(node, frame)
        elif isinstance(node, (ast.Break, ast.Continue)):
            self.leave_loop(isinstance(node, ast.Break))
        elif isinstance(node, ast.Return):
            self.items(node, frame)
            self.leave_call()
        elif isinstance(node, ast.Raise):
            self.items(node, frame)
            self.leave_by_raise()
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.items(node, frame)
            self.binds(node)

    def around(self, node: ast.With | ast.AsyncWith, frame: F, entering: bool) -> None:
        """What a context manager does on the way in, or at the end of its block."""
        for event in self.reader.managed(node, frame, entering):
            if self.here is not None:
                index = self.node("event", event)
                self.link(self.here, index)
                self.here = index

    def binds(self, node: ast.stmt) -> None:
        """Note where a name that a guard reads is bound anew."""
        if self.here is None or not isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.AsyncFor)):
            return
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        stored = {n for target in targets for n in _stored(target)}
        for loop in self.loops:
            self.bound[loop] |= stored
        names = stored & self.guarding
        if names:
            index = self.node("bind", bound=frozenset(names))
            self.link(self.here, index)
            self.here = index

    def assume(self, test: ast.expr, truth: bool, frame: F) -> None:
        """What is known behind a test."""
        guards = tuple(self.reader.guards(test, truth, frame))
        if self.here is None or not guards:
            return
        self.guarding.update(name for guard in guards for name in guard.names)
        index = self.node("assume", guards=guards)
        self.link(self.here, index)
        self.here = index

    def branch(self, node: ast.If, frame: F) -> None:
        self.items(node.test, frame)
        known = constant_truth(node.test)
        if known is None:
            known = self.reader.decided(node.test, frame)
        fork = self.here
        ends: list[int | None] = []
        for taken, body in ((True, node.body), (False, node.orelse)):
            self.here = fork if known in (None, taken) else None
            if known is None:
                self.assume(node.test, taken, frame)
            self.suite(body, frame)
            ends.append(self.here)
        self.merge(ends)

    def merge(self, ends: Sequence[int | None]) -> None:
        live = [end for end in ends if end is not None]
        if len(live) <= 1:
            self.here = live[0] if live else None
            return
        join = self.node("join")
        for end in live:
            self.link(end, join)
        self.here = join

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, frame: F) -> None:
        if isinstance(node, ast.While):
            if constant_truth(node.test) is False:
                return
        else:
            self.items(node, frame)
        if self.here is None:
            return
        after = self.node("join")
        outer = self.loops
        self.loops = (*outer, len(self.heads))
        head, turn = self.node("loop"), self.node("turn")
        self.heads.append(head)
        self.frames.append(frame)
        self.bound.append(set())
        self.targets.append(frozenset() if isinstance(node, ast.While) else frozenset(_stored(node.target)))
        self.link(self.here, head)
        self.here = head
        if isinstance(node, ast.While):
            self.items(node.test, frame)
        else:
            self.binds(node)
        self.blocks.append(_Loop(turn, after))
        self.suite(node.body, frame)
        self.blocks.pop()
        self.link(self.here, turn)
        self.loops = outer
        endless = isinstance(node, ast.While) and constant_truth(node.test) is True
        self.here = turn if turn in self.entered else None
        if self.here is not None:
            self.link(turn, head)
            if endless:
                self.here = None
            self.suite(node.orelse, frame)
        self.link(self.here, after)
        self.resume(after)

    def attempt(self, node: ast.Try, frame: F) -> None:
        if node.finalbody:
            self.blocks.append(_Finally(node.finalbody, frame))
        ends: list[int | None] = []
        handlers = self.node("join")
        if node.handlers:
            self.blocks.append(_Try(handlers))
            self.link(self.here, handlers)
        self.suite(node.body, frame)
        if node.handlers:
            self.blocks.pop()
        self.suite(node.orelse, frame)
        ends.append(self.here)
        for handler in node.handlers:
            self.resume(handlers)
            self.suite(handler.body, frame)
            ends.append(self.here)
        self.merge(ends)
        if node.finalbody:
            self.blocks.pop()
            self.suite(node.finalbody, frame)

    def match(self, node: ast.Match, frame: F) -> None:
        self.items(node.subject, frame)
        fork = self.here
        ends: list[int | None] = []
        exhausted = False
        for case in node.cases:
            self.here = fork
            self.suite(case.body, frame)
            ends.append(self.here)
            pattern = case.pattern
            exhausted |= isinstance(pattern, ast.MatchAs) and pattern.pattern is None and case.guard is None
        self.merge(ends if exhausted else [*ends, fork])

    def leave_loop(self, broken: bool) -> None:
        def target(block: object) -> int | None:
            if not isinstance(block, _Loop):
                return None
            return block.after if broken else block.turn

        self.leave(target)

    def leave_call(self) -> None:
        self.leave(lambda block: block.back if isinstance(block, _Call) else None)

    def leave_by_raise(self) -> None:
        self.leave(lambda block: block.handlers if isinstance(block, _Try) else None)

    def leave(self, target: Callable[[object], int | None]) -> None:
        """Jump out to the nearest block with a target, through every ``finally`` on the way."""
        kept, loops = list(self.blocks), self.loops
        goal: int | None = None
        while self.blocks and self.here is not None:
            block = self.blocks.pop()
            goal = target(block)
            if goal is not None:
                break
            if isinstance(block, _Finally):
                self.suite(block.body, block.frame)
        self.link(self.here, self.exit if goal is None else goal)
        self.here = None
        self.blocks, self.loops = kept, loops


def _stored(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def constant_truth(test: ast.expr) -> bool | None:
    """Whether a condition is decided by the text alone; ``None`` if not."""
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = constant_truth(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.Name) and test.id == "TYPE_CHECKING":
        return False
    return None
