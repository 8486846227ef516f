"""Taking unknowns apart: ``f(*unknown, **unknown)``, ``a, b = unknowns``, items of unknown collections."""

from __future__ import annotations

import inspect
import types
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from ghost import ASSUMED_LENGTH, Ghost
from ghost_math import holds_ghost

_LAZY = (map, filter, zip, enumerate, reversed, types.GeneratorType)
MAX_TAKEN = 64


class Star:
    """An argument ``*values`` of a call."""

    def __init__(self, values: Any) -> None:
        self.values = values


def call_with(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], maps: Tuple[Any, ...]) -> Any:
    """``function(*args, **kwargs)`` where unknown arguments are as many, and have the names, that it asks for."""
    known: List[Any] = []
    stars: List[Ghost] = []
    for value in args:
        if not isinstance(value, Star):
            known.append(value)
        elif isinstance(value.values, Ghost):
            stars.append(value.values)
        else:
            known.extend(value.values)
    named = dict(kwargs)
    unknown: List[Ghost] = []
    for mapping in maps:
        if isinstance(mapping, Ghost):
            unknown.append(mapping)
        else:
            named.update(mapping)
    if not stars and not unknown:
        return function(*known, **named)
    if isinstance(function, Ghost) or _is_foreign(function):
        taken = [v for star in stars for v in (star[i] for i in range(ASSUMED_LENGTH))]
        extra = {"unknown": unknown[0]} if unknown and _takes_anything(function) else {}
        return function(*known, *taken, **named, **extra)
    parameters = _parameters(function)
    for parameter in _missing(parameters, known, named):
        if stars and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            known.append(stars[0][len(known)])
        elif unknown:
            named[parameter.name] = unknown[0][parameter.name]
    return function(*known, **named)


def _is_foreign(function: Any) -> bool:
    """Whether a callable is PyTorch's or Python's, so that its parameters are none of the program's."""
    if isinstance(function, torch.nn.Module):
        return type(function).__module__.startswith("torch.") or hasattr(function, "gl_name")
    home = str(getattr(function, "__module__", "") or "")
    return home.split(".")[0] in ("torch", "builtins", "numpy", "functools", "itertools") or isinstance(
        function, (types.BuiltinFunctionType, types.BuiltinMethodType)
    )


def _takes_anything(function: Any) -> bool:
    return isinstance(function, Ghost) or hasattr(function, "gl_name")


def _parameters(function: Any) -> Sequence[inspect.Parameter]:
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return []


def _missing(
    parameters: Sequence[inspect.Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> List[inspect.Parameter]:
    """The parameters without a default that the known arguments leave open."""
    single = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    left = [p for p in parameters if p.kind in single][len(args) :]
    left += [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return [p for p in left if p.name not in kwargs and p.default is inspect.Parameter.empty]


def init_base(base: Any, *args: Any, **kwargs: Any) -> Any:
    """``Base.__init__(self, ...)``; of an unknown base, that of the real class that stands for it."""
    if not isinstance(base, Ghost):
        return base.__init__(*args, **kwargs)
    instance = args[0] if args else None
    if isinstance(instance, torch.nn.Module) and "_parameters" not in instance.__dict__:
        torch.nn.Module.__init__(instance)
    return None


def unpacked(value: Any, count: int) -> Any:
    """``value`` as ``count`` items, where it is a collection of unknowns of which the number was a guess."""
    if not isinstance(value, (list, tuple, *_LAZY)):
        return value
    items: List[Any] = []
    for item in value:
        items.append(item)
        if len(items) >= MAX_TAKEN:
            break
    if len(items) == count or not holds_ghost(items):
        return items
    return [*items[:count], *(Ghost(f"item{i}") for i in range(len(items), count))]


def item(holder: Any, key: Any) -> Any:
    """``holder[key]``; an unknown key of a known collection picks any of its items."""
    if isinstance(key, int) and isinstance(holder, (list, tuple)):
        if not -len(holder) <= key < len(holder) and holder and all(isinstance(v, Ghost) for v in holder):
            return Ghost(f"item{key}")
        return holder[key]
    if not isinstance(key, Ghost) or not isinstance(holder, (dict, list, tuple)) or not holder:
        return holder[key]
    if isinstance(holder, dict):
        return holder[key] if key in holder else next(iter(holder.values()))
    return holder[0]
