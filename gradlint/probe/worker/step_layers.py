"""Layers of unknown size: ``nn.Linear(args.dim, 10)`` where nothing tells the dimension still has parameters."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Dict, Tuple

import torch
from ghost import Ghost, unknown_size
from ghost_world import world


def install() -> None:
    """Wrap the constructors of ``torch.nn``'s layers, and ``Module.to``. Calling it again does nothing."""
    _foreign_layers()
    moved = torch.nn.Module.to
    if not hasattr(moved, "gl_wrapped"):
        torch.nn.Module.to = _stays(moved)  # type: ignore[method-assign]
    for name in dir(torch.nn):
        layer = getattr(torch.nn, name)
        if not inspect.isclass(layer) or not issubclass(layer, torch.nn.Module) or "__init__" not in vars(layer):
            continue
        if name in ("Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"):
            continue
        made = layer.__init__
        if not hasattr(made, "gl_wrapped"):
            setattr(layer, "__init__", _known(made))  # noqa: B010


def _foreign_layers() -> None:
    """A layer of another library, stored in a module of the program's, is a module with parameters."""
    module: Any = torch.nn.Module
    if hasattr(module.__setattr__, "gl_wrapped"):
        return
    real_set, real_add = module.__setattr__, module.add_module

    @functools.wraps(real_set)
    def set_attribute(self: Any, name: str, value: Any) -> None:
        real_set(self, name, _layer(value, name))

    @functools.wraps(real_add)
    def add_module(self: Any, name: str, module: Any) -> None:
        real_add(self, name, _layer(module, name, True))

    set_attribute.gl_wrapped = True  # type: ignore[attr-defined]
    module.__setattr__, module.add_module = set_attribute, add_module


def _layer(value: Any, name: str, surely: bool = False) -> Any:
    return world().layer(value, name, surely) if isinstance(value, Ghost) else value


def _stays(moved: Any) -> Any:
    """``model.to(device)`` with a device that is not known is the model itself."""

    @functools.wraps(moved)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(v, Ghost) for v in (*args, *kwargs.values())):
            return self
        return moved(self, *args, **kwargs)

    to.gl_wrapped = True  # type: ignore[attr-defined]
    return to


def _known(made: Any) -> Any:
    signature = inspect.signature(made)

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if any(isinstance(v, Ghost) for v in (*args, *kwargs.values())):
            args, kwargs = _without_ghosts(signature, self, args, kwargs)
        args = tuple(_whole(v) for v in args)
        kwargs = {k: _whole(v) for k, v in kwargs.items()}
        made(self, *args, **kwargs)

    __init__.gl_wrapped = True  # type: ignore[attr-defined]
    return __init__


def _whole(value: Any) -> Any:
    """A size that NumPy computed from an unknown shape is a whole number all the same."""
    is_numpy = type(value).__module__ == "numpy" and type(value).__name__.startswith("float")
    return int(value) if is_numpy and float(value).is_integer() else value


def _without_ghosts(
    signature: inspect.Signature, owner: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]
) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    """What is not known takes its default, and a size without one is :func:`ghost.unknown_size`."""
    bound = signature.bind(owner, *args, **kwargs)
    for name, value in list(bound.arguments.items()):
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(unknown_size(v) if isinstance(v, Ghost) else v for v in value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {k: v for k, v in value.items() if not isinstance(v, Ghost)}
        elif isinstance(value, Ghost):
            if signature.parameters[name].default is inspect.Parameter.empty:
                bound.arguments[name] = unknown_size(value)
            else:
                del bound.arguments[name]
    return bound.args[1:], bound.kwargs
