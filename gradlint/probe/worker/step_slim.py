"""For programs whose own models are too slow: a class of the program's that is a model makes a stand-in instead.

What trains (a Lightning module, a class with the region in it) stays what it is.
"""

from __future__ import annotations

import ast
from typing import Any, Callable, Dict, FrozenSet, Mapping, Optional, Tuple

import torch
from step_standins import StandInModel
from step_text import nodes_of

_HEAVY = ("Sequential", "Transformer", "TransformerEncoder", "TransformerDecoder", "LSTM", "GRU", "RNN")
"""PyTorch's own classes that a program may make its model of."""


class _State:
    """Which classes are replaced, while they are."""

    replaced: Optional[Callable[[type], bool]] = None
    made: Optional[Callable[[StandInModel], None]] = None
    installed = False


def install() -> None:
    """Teach ``torch.nn.Module`` to make a stand-in where that is asked for. Calling it again does nothing."""
    if _State.installed:
        return
    _State.installed = True

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if _State.replaced is None or not _State.replaced(cls):
            return object.__new__(cls)
        model = StandInModel(cls.__name__)
        if _State.made is not None:
            _State.made(model)
        return model

    torch.nn.Module.__new__ = staticmethod(new)  # type: ignore[method-assign]


def replace(classes: FrozenSet[Tuple[str, str]], made: Callable[[StandInModel], None]) -> None:
    """From now on these classes (by module and name), and PyTorch's large ones, make stand-ins."""

    def replaced(cls: type) -> bool:
        if cls.__module__.startswith("torch.nn.") and cls.__name__ in _HEAVY:
            return True
        return (cls.__module__, cls.__name__) in classes

    _State.replaced, _State.made = replaced, made


def stop() -> None:
    """Every class makes what it is again."""
    _State.replaced = _State.made = None


def replaceable(
    trees: Mapping[str, ast.Module], entry: str, region: str, trains: Callable[[ast.AST], bool]
) -> FrozenSet[Tuple[str, str]]:
    """The classes of the program that hold no training event and not the region."""
    found: Dict[Tuple[str, str], None] = {}
    for name, tree in trees.items():
        for node in nodes_of(tree).classes:
            if trains(node):
                continue
            if name != entry or node.name not in region.split("."):
                found[(name, node.name)] = None
    return frozenset(found)
