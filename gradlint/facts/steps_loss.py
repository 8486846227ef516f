"""A loss that is computed for a step and never propagated: one of the questions of GL106."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence

from gradlint.facts.cfg import Node
from gradlint.facts.steps import Event, StepFacts
from gradlint.facts.steps_states import Turn, follow
from gradlint.facts.steps_words import word_set, words


def loss_left(steps: StepFacts, turn: Turn, index: int, step: Event) -> str | None:
    """The loss that is computed for a step and never propagated: the optimizer clears, and steps right behind that.

    ``loss_g = ...; optimizer_g.zero_grad(); optimizer_g.step()``: the name of the loss, None where there is no such.
    """

    def transfer(node: Node[Event], state: str) -> str:
        event = node.event
        if event is None or event.kind in _HARMLESS:
            return state
        if event.kind == "zero_grad" and event.object == step.object and event.frames == step.frames:
            return f"{node.index}"
        return "" if event.kind != "zero_grad" else state

    before = follow(turn.graph, {turn.graph.entry: frozenset({""})}, transfer).get(index, frozenset())
    if step.wrapper or not step.object or len(before) != 1 or before == frozenset({""}):
        return None
    clear = turn.graph.nodes[int(next(iter(before)))].event
    source = steps.files.get(step.path)
    if clear is None or source is None:
        return None
    for body in _bodies(source.tree):
        at = next((k for k, s in enumerate(body) if _on_line(s, step.line) and isinstance(s, ast.Expr)), None)
        if at is not None:
            first = next((k for k, s in enumerate(body[:at]) if _on_line(s, clear.line)), None)
            forwards = {(e.line, e.location.column) for _, e in turn.events("forward")}
            return _unused_loss(body, first, at, forwards) if first is not None else None
    return None


_HARMLESS = frozenset({"forward", "make", "iterator", "scaler_update", "clip"})


def _on_line(statement: ast.stmt, line: int) -> bool:
    return statement.lineno <= line <= (statement.end_lineno or statement.lineno)


def _unused_loss(body: Sequence[ast.stmt], first: int, step: int, forwards: Collection[tuple[int, int]]) -> str | None:
    """The loss among the statements ahead of a step whose clearing is statement ``first``.

    A call between the two might run backward, unless it is one of PyTorch, of a tensor, a model or a loss function.
    """
    between = [n for s in body[first + 1 : step] for n in ast.walk(s) if isinstance(n, ast.Call)]
    if not all((n.lineno, n.col_offset + 1) in forwards or _computes(n) for n in between):
        return None
    for statement in reversed(body[:step]):
        calls = [n for n in ast.walk(statement) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        doing = {n.func.attr for n in calls if isinstance(n.func, ast.Attribute)}
        if doing & {"backward", "step", "manual_backward"}:
            return None
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            continue
        targets = statement.targets[0]
        listed = targets.elts if isinstance(targets, ast.Tuple) else [targets]
        target = next((t for t in listed if isinstance(t, ast.Name) and _LOSSES & set(words(t.id))), None)
        if target is not None:
            given = [n for s in body[body.index(statement) + 1 : step] for n in ast.walk(s) if isinstance(n, ast.Call)]
            handed = any(isinstance(a, ast.Name) and a.id == target.id for n in given for a in n.args)
            spoken = any(
                isinstance(n, ast.Call) and "backward" in ast.unparse(n.func) and target.id in _names(n)
                for s in body
                for n in ast.walk(s)
            )
            return None if handed or spoken else target.id
    return None


def _computes(call: ast.Call) -> bool:
    """Whether a call is one of a library, of a tensor or of a loss function, going by its name."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    of_library = owner.partition(".")[0] in _LIBRARIES
    return of_library or name in _OF_TENSORS or bool(_CRITERIA & set(words(name)))


_LIBRARIES = word_set("torch F nn np numpy math functional th")
_OF_TENSORS = word_set(
    """detach size view reshape squeeze unsqueeze expand expand_as repeat mean sum pow sqrt exp log abs clamp float long
    half to cuda cpu item data type type_as t permute transpose contiguous requires_grad_ fill_ add sub mul div max min
    print len range train eval isinstance"""
)
_LOSSES = word_set("loss losses err error cost objective")
_CRITERIA = word_set("criterion criterions crit mse bce nll ce kl mean sum entropy")


def _bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """All lists of statements."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            found = getattr(node, name, None)
            if isinstance(found, list) and found and isinstance(found[0], ast.stmt):
                yield found


def _names(node: ast.AST) -> frozenset[str]:
    return frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
