"""Ghosts where Python wants a module or a base class."""

from __future__ import annotations

from types import ModuleType
from typing import Any, List, Tuple

import torch
from ghost import UNKNOWN_DEVICE, Ghost
from ghost_world import MISSING, world


class GhostModule(ModuleType):
    """A module that is not there: every name in it is a ghost."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: List[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            if name == "__version__":
                return "0.0"
            raise AttributeError(name)
        value = Ghost(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class GhostBase:
    """The base that an unknown base class is replaced by: what it would supply is a ghost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return attribute_of(self, name)


class GhostModuleBase(torch.nn.Module):
    """An unknown base class that is surely a ``torch.nn.Module`` (``LightningModule``, ``PreTrainedModel``)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
        return attribute_of(self, name)


def attribute_of(instance: Any, name: str) -> Any:
    """The ghost for an attribute that ``instance`` lacks, the same one each time."""
    store = instance.__dict__.setdefault("gl_ghosts", {})
    if name not in store:
        path = f"self.{name}"
        known = world().value_of(path)
        if known is not MISSING:
            store[name] = known
        elif name == "device":
            store[name] = UNKNOWN_DEVICE
        else:
            ghost = Ghost(path)
            object.__setattr__(ghost, "gl_extra", instance)
            store[name] = ghost
    return store[name]


def base_for(name: str) -> Tuple[type, ...]:
    """The real bases that stand for the unknown base class ``name``; for each name a class of its own."""
    last = name.rsplit(".", 1)[-1]
    if last.endswith("Optimizer"):
        return (torch.optim.Optimizer,)
    is_module = last.endswith(("Module", "Model", "Net", "Layer", "Block", "Encoder", "Decoder", "Backbone"))
    base = GhostModuleBase if is_module else GhostBase
    return (type(last if last.isidentifier() else "Base", (base,), {}),)
