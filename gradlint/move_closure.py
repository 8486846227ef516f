"""Moving a clip that follows ``optimizer.step(closure)`` into the closure, to directly behind its backward."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import libcst as cst

from gradlint.move_cross import BACKWARD, check_result, scope_of
from gradlint.move_edit import relocated
from gradlint.move_holder import held, take
from gradlint.move_names import arguments, binds, leaves, reads
from gradlint.move_source import Refused, Source, Standing
from gradlint.move_write import Insertion
from gradlint.rule import Location, SourceEdit


def closures_of(source: Source, steps: Sequence[Location]) -> list[cst.FunctionDef]:
    """The functions of the text that steps are handed. Refused for a lambda, and for names that two functions have."""
    calls = [source.call_at(step) for step in steps]
    handed = [argument for call in calls if call for argument in arguments(call)]
    if any(isinstance(node, ast.Lambda) for node in handed):
        raise Refused
    names = {node.id for node in handed if isinstance(node, ast.Name)}
    found = [node for node in source.ranges if isinstance(node, cst.FunctionDef) and node.name.value in names]
    if len({node.name.value for node in found}) < len(found):
        raise Refused
    return found


def move_into(
    source: Source, closure: cst.FunctionDef, what: Location, steps: Sequence[Location], description: str
) -> SourceEdit:
    """Move the call ``what`` from behind the steps into the closure; never safe.

    Refused, beside what :mod:`gradlint.move_cross` says, where the closure has names of its own that the call reads.
    """
    way, near = source.meet(what, steps)
    block, index = way[-1]
    step = next(k for k, child in enumerate(block.body) if source.holds(child, near))
    body = closure.body
    if step > index or not isinstance(body, cst.IndentedBlock):
        raise Refused
    taken = take(source, block.body[index], held(source, block.body[index], what))
    backward = [k for k, child in enumerate(body.body) if source.calls(child, BACKWARD)]
    if not backward or leaves(source.tree(body.body[backward[-1]])):
        raise Refused
    own = binds(source.tree(closure)) | {node.name.value for node in closure.params.params}
    if any(name.split(".")[0] in own for name in reads(source.tree(taken.first))):
        raise Refused
    insertion = Insertion((Standing(body, backward[-1] + 1),), behind=True, nested=True)
    check_result(source, [taken.first], scope_of(source, way, [taken.first]), [insertion])
    crossed = [*taken.ahead, *block.body[step:index]]
    return relocated(source, taken, [taken.first], [insertion], crossed, steps, description)
