"""Which calls are training events, and what is called inside of a piece of text."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Dict, FrozenSet, Set

from ghost import words
from step_nodes import dotted
from step_roles import OPTIMIZER_NAME

EVENTS = words(
    "backward manual_backward step zero_grad unscale_ clip_grad_norm_ clip_grad_norm clip_grad_value_ "
    "clip_gradients clip_grads_with_norm_ clip_grad dispatch_clip_grad second_step step_and_update_lr"
)
_STEPS = words("step second_step step_and_update_lr")
_DERIVATIVES = ("torch.autograd.grad", "autograd.grad")
_QUIET = re.compile(r"sched|^lr|_lr|prof|ema|env|metric|bar|writer|meter", re.IGNORECASE)


def is_event_call(node: ast.AST) -> bool:
    """A call whose name is that of a training event."""
    if not isinstance(node, ast.Call):
        return False
    func, name = node.func, last_name(node)
    if name not in EVENTS and not name.startswith("clip_grad"):
        return False
    if name == "step" and isinstance(func, ast.Attribute):
        owner = dotted(func.value) or ""
        return not _QUIET.search(owner.rsplit(".", 1)[-1])
    return True


@dataclass(frozen=True)
class _Called:
    """What is called inside a node."""

    names: FrozenSet[str]
    event: bool
    backward: bool
    step: bool


class _Found:
    """What is called, while it is gathered."""

    def __init__(self) -> None:
        self.names: Set[str] = set()
        self.event = self.backward = self.step = False

    def call(self, node: ast.Call) -> None:
        """One call."""
        self.names.add(_called_name(node))
        self.names.update(a.id for a in node.args if isinstance(a, ast.Name))
        if is_event_call(node):
            self.event = True
            self.step = self.step or last_name(node) in _STEPS
        if last_name(node) in ("backward", "manual_backward") or dotted(node.func) in _DERIVATIVES:
            self.backward = True


class Calls:
    """What is called inside a node: kept per statement, since blocks are asked again and again."""

    def __init__(self) -> None:
        self._kept: Dict[ast.AST, _Called] = {}
        self.hidden = False
        """Whether whatever goes back has another name in this program: any event may be it."""

    def names(self, node: ast.AST) -> FrozenSet[str]:
        """Last names of everything called in ``node``, and of functions handed over as arguments."""
        return self._read(node).names

    def events(self, node: ast.AST) -> bool:
        """Whether ``node`` holds a training event."""
        return self._read(node).event

    def backward(self, node: ast.AST) -> bool:
        """Whether ``node`` holds a backward pass."""
        called = self._read(node)
        return called.event if self.hidden else called.backward

    def steps(self, node: ast.AST) -> bool:
        """Whether ``node`` holds an optimizer step."""
        return self._read(node).step

    def _read(self, node: ast.AST) -> _Called:
        if node in self._kept:
            return self._kept[node]
        found = _Found()
        self._gather(node, found)
        result = _Called(frozenset(found.names - {""}), found.event, found.backward, found.step)
        if isinstance(node, (ast.stmt, ast.Module)):
            self._kept[node] = result
        return result

    def _gather(self, node: ast.AST, found: _Found) -> None:
        """Add what is called in ``node`` and below; a statement inside is read by itself, and kept."""
        if isinstance(node, ast.Call):
            found.call(node)
        for name in node._fields:
            value = getattr(node, name, None)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    inner = self._read(child)
                    found.names |= inner.names
                    found.event, found.backward = found.event or inner.event, found.backward or inner.backward
                    found.step = found.step or inner.step
                elif isinstance(child, ast.AST) and child._fields:
                    self._gather(child, found)


def last_name(node: ast.Call) -> str:
    """The name a call is made by, without what it belongs to."""
    func = node.func
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _called_name(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in ("train", "eval"):
            return ""  # a mode, not a function of the program
        owner = (dotted(node.func.value) or "").rsplit(".", 1)[-1]
        if node.func.attr in EVENTS and (OPTIMIZER_NAME.search(owner) or owner.lower().endswith("scaler")):
            return ""  # a method of PyTorch's
    return (dotted(node.func) or "").rsplit(".", 1)[-1]
