"""Lightning's automatic optimisation: the training step that a ``LightningModule`` leaves to the trainer, as code.

The trainer calls ``training_step``, clears the gradients, runs backward and steps, with the module's hooks between.
Written out as statements of the module it is read like any other training step.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradlint.facts.steps_project import ScopeCache
from gradlint.facts.steps_scopes import Class, Function, spelled

_ORDER = """
for batch_idx, batch in enumerate(trainer.train_dataloader):
    self.on_train_batch_start(batch, batch_idx)
    loss = self.training_step(batch, batch_idx)
    self.on_before_zero_grad(trainer.optimizer)
    trainer.optimizer.zero_grad()
    self.on_before_backward(loss)
    trainer.backward(loss)
    self.on_after_backward()
    self.on_before_optimizer_step(trainer.optimizer)
    self.configure_gradient_clipping(trainer.optimizer)
    trainer.optimizer.step()
    self.on_train_batch_end(None, batch, batch_idx)
"""
"""The order of Lightning's optimisation loop (documentation of ``LightningModule``, hooks)."""
_OWN = "training_step"


def automatic(cls: Class, cache: ScopeCache) -> tuple[Function, list[ast.stmt]] | None:
    """The ``training_step`` of a module that is optimised automatically, and the loop round it; None if it is not."""
    step = cls.methods.get(_OWN)
    if step is None or not any(name.rsplit(".", 1)[-1] == "LightningModule" for name in cache.base_names(cls)):
        return None
    if any(_is_manual(base.node) for base in cache.bases(cls)):
        return None
    receiver = step.parameters[0] if step.parameters else "self"
    tree = ast.parse(_ORDER)
    loop = tree.body[0]
    assert isinstance(loop, ast.For)
    loop.body = [s for s in loop.body if _exists(s, cls, cache)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "self":
            node.id = receiver
        if isinstance(node, (ast.stmt, ast.expr)):
            node.lineno = node.end_lineno = step.node.lineno
            node.col_offset, node.end_col_offset = step.node.col_offset, step.node.col_offset + 1
    return step, tree.body


def _exists(statement: ast.stmt, cls: Class, cache: ScopeCache) -> bool:
    """Whether a hook is one that the module has."""
    for call in _calls(statement):
        if isinstance(call.func, ast.Attribute) and spelled(call.func.value) == "self":
            return cache.method(cls, call.func.attr) is not None
    return True


def _calls(statement: ast.stmt) -> Iterator[ast.Call]:
    return (node for node in ast.walk(statement) if isinstance(node, ast.Call))


_OWN_ORDER = frozenset({"automatic_optimization", "optimizer_step", "optimizer_zero_grad", "backward"})
"""Methods and properties with which a module makes an order of its own."""
_MANUAL = frozenset({"manual_backward", "backward", "optimizers"})


def _is_manual(node: ast.ClassDef) -> bool:
    """``automatic_optimization`` set to anything but True; or a backward, an optimizer or an order of its own."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and inner.name in _OWN_ORDER:
            return True
        if isinstance(inner, ast.Attribute) and inner.attr in _MANUAL:
            return True
        if isinstance(inner, (ast.Assign, ast.AnnAssign)) and not _is_true(inner.value):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            if any((spelled(target) or "").endswith("automatic_optimization") for target in targets):
                return True
    return False


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True
