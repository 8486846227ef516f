"""A loss that is computed for a step and never propagated: one of the questions of GL106."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence

from gradlint.facts.cfg import Node
from gradlint.facts.steps import Event, StepFacts
from gradlint.facts.steps_scopes import spelled
from gradlint.facts.steps_states import Turn, follow
from gradlint.facts.steps_words import last_name, word_set, words


def loss_left(steps: StepFacts, turn: Turn, index: int, step: Event) -> str | None:
    """The loss that is computed for a step and never propagated: the optimizer clears, and steps right behind that.

    ``loss_g = ...; optimizer_g.zero_grad(); optimizer_g.step()``: the name of the loss, None where there is no such.
    """
    plain = steps.objects is not None and steps.objects.may_be_of_torch(step.object)
    if step.wrapper or not plain or not step.object:
        return None

    def transfer(node: Node[Event], state: str) -> str:
        event = node.event
        if event is None or event.kind in _HARMLESS or (event.kind == "compute" and _gives_a_loss(event.name)):
            return state
        if event.kind == "zero_grad" and event.object == step.object and event.frames == step.frames:
            return f"{node.index}"
        return "" if event.kind != "zero_grad" else state

    before = follow(turn.graph, {turn.graph.entry: frozenset({""})}, transfer).get(index, frozenset())
    if len(before) != 1 or before == frozenset({""}):
        return None
    clear = turn.graph.nodes[int(next(iter(before)))].event
    source = steps.files.get(step.path)
    if clear is None or source is None:
        return None
    ahead = [s for s in _ahead(source.tree, step.line) if not _on_line(s, clear.line)]
    forwards = {(e.line, e.location.column) for _, e in turn.events("forward")}
    return _unused_loss(ahead, clear.line, forwards)


def only_computes(steps: StepFacts, turn: Turn, step: Event, losses: bool = False) -> bool:
    """Whether no call in the loop of a step, ahead of it, may run backward: a loss object may do that by itself.

    ``losses``: only calls that speak of a loss are asked.
    """
    source = steps.files.get(step.path)
    forwards = {(e.line, e.location.column) for _, e in turn.events("forward", "zero_grad", "clip")}
    loops = [n for n in ast.walk(source.tree) if isinstance(n, (ast.For, ast.While))] if source is not None else []
    inner = [n for n in loops if _on_line(n, step.line)]
    if not inner:
        return False
    assert source is not None
    own = {n.name: n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef)}
    calls = [n for s in inner[-1].body for n in ast.walk(s) if isinstance(n, ast.Call) and n.lineno < step.line]
    if losses:
        given = [n for s in inner[-1].body for n in ast.walk(s) if isinstance(n, ast.Assign) and n.lineno < step.line]
        if any(_is_given_by_a_model(n, forwards) for n in given):
            return False
        calls = [n for n in calls if {"loss", "losses"} & set(words(spelled(n.func) or ""))]
    return all(_is_harmless(n, forwards, own, 0) for n in calls)


def _is_harmless(
    call: ast.Call, known: Collection[tuple[int, int]], own: Mapping[str, ast.FunctionDef], depth: int
) -> bool:
    """Whether a call runs no backward: one that was read, a computation, or a function of the file that makes only
    such calls."""
    if (call.lineno, call.col_offset + 1) in known or _computes(call, False):
        return True
    body = own.get((spelled(call.func) or "").rpartition(".")[2])
    if body is None or depth > 3:
        return False
    inner = [n for s in body.body for n in ast.walk(s) if isinstance(n, ast.Call)]
    return all(_is_harmless(n, known, own, depth + 1) for n in inner)


_HARMLESS = frozenset({"forward", "make", "iterator", "scaler_update", "clip"})


def _on_line(statement: ast.stmt, line: int) -> bool:
    return statement.lineno <= line <= (statement.end_lineno or statement.lineno)


def _ahead(tree: ast.Module, line: int) -> list[ast.stmt]:
    """The statements that run ahead of the one on ``line`` in its function: those before it, in its block and in the
    blocks round it."""
    body: Sequence[ast.stmt] = tree.body
    found: list[ast.stmt] = []
    while True:
        at = next((s for s in body if _on_line(s, line)), None)
        if at is None:
            return found
        if isinstance(at, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found = []
        else:
            found.extend(body[: body.index(at)])
        inner = (getattr(at, name, None) for name in ("body", "orelse", "finalbody"))
        body = next((b for b in inner if isinstance(b, list) and any(_on_line(s, line) for s in b)), [])


def _unused_loss(ahead: Sequence[ast.stmt], clear: int, forwards: Collection[tuple[int, int]]) -> str | None:
    """The last loss that statements compute, where nothing in them speaks of its backward.

    A call behind line ``clear`` might run backward, unless it is one of PyTorch, a tensor, a model or a loss function.
    """
    nodes = [n for s in ahead for n in ast.walk(s)]
    discarded = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    between = [n for n in nodes if isinstance(n, ast.Call) and n.lineno > clear]
    if not all((n.lineno, n.col_offset + 1) in forwards or _computes(n, id(n) in discarded) for n in between):
        return None
    lost: str | None = None
    for node in sorted((n for n in nodes if isinstance(n, (ast.Assign, ast.Call))), key=lambda n: n.lineno):
        if isinstance(node, ast.Call):
            done = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            handed = any(spelled(a) == lost for a in node.args)
            if done in _PROPAGATE or (handed and not _computes(node, id(node) in discarded)):
                lost = None
        elif len(node.targets) == 1:
            if _is_given_by_a_model(node, forwards):
                lost = None
                continue
            target = node.targets[0]
            listed = target.elts if isinstance(target, ast.Tuple) else [target]
            lost = next((n for n in map(spelled, listed) if n and _LOSSES & set(words(last_name(n)))), lost)
    return lost


def _is_given_by_a_model(node: ast.Assign, forwards: Collection[tuple[int, int]]) -> bool:
    """Whether a model gives its own loss, as ``losses, scores = meta_model(...)`` does: it may have trained itself."""
    value = node.value
    if not isinstance(value, ast.Call) or (value.lineno, value.col_offset + 1) not in forwards:
        return False
    return any(_LOSSES & set(words(n.id)) for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name))


_PROPAGATE = frozenset({"backward", "step", "manual_backward"})


def _computes(call: ast.Call, discarded: bool) -> bool:
    """Whether a call is one of a library, of a tensor or of a loss function, going by its name; or a scaled loss that
    nothing takes: ``scaler.scale(loss)``."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    of_library = owner.partition(".")[0] in _LIBRARIES
    return of_library or name in _OF_TENSORS or _gives_a_loss(name) or (discarded and name == "scale")


def _gives_a_loss(name: str) -> bool:
    """Whether a function gives a loss by its name, and so runs no backward itself: ``criterion``, ``dice_loss``."""
    said = words(name.rpartition(".")[2])
    if said[-1:] in (["fn"], ["func"], ["function"]):
        said = said[:-1]
    return bool(CRITERIA & set(said)) or (said[-1:] == ["loss"] and "compute" not in said)


_LIBRARIES = word_set("torch F nn np numpy math functional th")
_OF_TENSORS = word_set(
    """detach size view reshape squeeze unsqueeze expand expand_as repeat mean sum pow sqrt exp log abs clamp float long
    half to cuda cpu item data type type_as t permute transpose contiguous requires_grad_ fill_ add sub mul div max min
    norm softmax log_softmax sigmoid tanh relu gather scatter_ masked_select index_select argmax topk cumsum var matmul
    mm bmm dot flatten chunk split numpy tolist new_zeros new_ones new_tensor double bool int print len range train eval
    isinstance next zip enumerate list tuple dict str getattr hasattr iter autocast no_grad append extend
    forward"""
)
_LOSSES = word_set("loss losses err error cost objective")
CRITERIA = word_set("criterion criterions crit mse bce nll ce kl entropy")
"""In the name of what computes a loss and does nothing else."""
