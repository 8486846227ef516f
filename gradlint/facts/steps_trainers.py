"""Loops that a framework runs round a method of the user's class, written out as code.

Lightning calls ``training_step`` for each batch, clears the gradients, runs backward and steps, with the module's
hooks between, unless the module does that by hand. The Trainer of transformers calls ``training_step``, which runs
the backward, and then steps and clears. A Brain of speechbrain has its ``fit_batch`` called. Written out as
statements, each is read like any other training step.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from gradlint.facts.steps_project import ScopeCache
from gradlint.facts.steps_scopes import Class, Function, spelled

_LIGHTNING = """
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
_LIGHTNING_BY_HAND = """
for batch_idx, batch in enumerate(trainer.train_dataloader):
    self.on_train_batch_start(batch, batch_idx)
    self.training_step(batch, batch_idx)
    self.on_train_batch_end(None, batch, batch_idx)
"""
_TRANSFORMERS = """
for step, inputs in enumerate(self.get_train_dataloader()):
    loss = self.training_step(self.model, inputs)
    self.optimizer.step()
    self.model.zero_grad()
"""
"""The order of transformers' ``Trainer._inner_training_loop``; it clips too, ahead of the step."""
_SPEECHBRAIN = """
for batch in train_set:
    self.fit_batch(batch)
"""
"""speechbrain's ``Brain._fit_train``."""
_TRAINS = frozenset({"train", "_inner_training_loop", "optimizer_step", "zero_grad"})
"""Methods with which a subclass of transformers' Trainer makes an order of its own."""


@dataclasses.dataclass(frozen=True)
class Course:
    """The loop round a method that a framework calls for each batch."""

    step: Function
    body: list[ast.stmt]
    trainer: str = ""
    """The framework, where it runs the optimizer; empty where the method does all of it."""


def course_of(cls: Class, cache: ScopeCache) -> Course | None:
    """The loop that a framework runs round a method of this class; None if it runs none."""
    step, batch = cls.methods.get("training_step"), cls.methods.get("fit_batch")
    if step is None and batch is None:
        return None
    names = cache.base_names(cls)
    last = {name.rsplit(".", 1)[-1] for name in names}
    if step is not None and "LightningModule" in last:
        if any(_is_manual(base.node) for base in cache.bases(cls)):
            return _written(_LIGHTNING_BY_HAND, "", step, cls, cache)
        return _written(_LIGHTNING, "Lightning", step, cls, cache)
    of_transformers = any(name.startswith("transformers.") and name.endswith("Trainer") for name in names)
    if step is not None and of_transformers and not any(cache.method(cls, name) for name in _TRAINS):
        return _written(_TRANSFORMERS, "transformers", step, cls, cache)
    if batch is not None and "Brain" in last and cache.method(cls, "fit") is None:
        return _written(_SPEECHBRAIN, "", batch, cls, cache)
    return None


def _written(order: str, trainer: str, step: Function, cls: Class, cache: ScopeCache) -> Course:
    receiver = step.parameters[0] if step.parameters else "self"
    tree = ast.parse(order)
    loop = tree.body[0]
    assert isinstance(loop, ast.For)
    loop.body = [s for s in loop.body if _exists(s, cls, cache)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "self":
            node.id = receiver
        if isinstance(node, (ast.stmt, ast.expr)):
            node.lineno = node.end_lineno = step.node.lineno
            node.col_offset, node.end_col_offset = step.node.col_offset, step.node.col_offset + 1
    return Course(step, tree.body, trainer)


def _exists(statement: ast.stmt, cls: Class, cache: ScopeCache) -> bool:
    """Whether a hook is one that the module has."""
    for call in _calls(statement):
        if isinstance(call.func, ast.Attribute) and spelled(call.func.value) == "self":
            return not call.func.attr.startswith(("on_", "configure_")) or cache.method(cls, call.func.attr) is not None
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
