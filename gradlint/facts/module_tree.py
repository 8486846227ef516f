"""The tree of modules inside a module: walking it, and naming its layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradlint.facts.values import Container, Instance, Layer, Tensor, Value, Weight


def modules_of(value: Value, seen: set[int] | None = None) -> Iterator[Value]:
    """The module and everything in it, as ``Module.modules()`` gives them (inner ones first)."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    for _, child in children(value):
        yield from modules_of(child, seen)
    yield value


def layers_of(value: Value) -> list[Layer]:
    """The leaf layers inside a module."""
    found = []
    for m in modules_of(value):
        inner = m.attrs.get("__layer__") if isinstance(m, Instance) else m
        if isinstance(inner, Layer):
            found.append(inner)
        found.extend(weight.layer for _, weight in parameters_of(m))
    return found


def parameters_of(value: Value) -> list[tuple[str, Weight]]:
    """The parameters that an object has made by hand, with their names."""
    if not isinstance(value, Instance):
        return []
    return [(k, v) for k, v in value.attrs.items() if isinstance(v, Weight) and v.layer.cls == "Parameter"]


def children(value: Value) -> list[tuple[Any, Value]]:
    if isinstance(value, Container):
        pairs = list(zip(value.names, value.items, strict=True))
    elif isinstance(value, Instance):
        pairs = [(k, v) for k, v in value.attrs.items() if k not in ("__items__", "__layer__")]
        items = value.attrs.get("__items__")
        if isinstance(items, Container):
            pairs += list(zip(items.names, items.items, strict=True))
    else:
        return []
    return [(k, v) for k, v in pairs if isinstance(v, (Layer, Container)) or (isinstance(v, Instance) and v.is_module)]


def name_paths(value: Value, prefix: str = "", seen: set[int] | None = None) -> None:
    """Give every layer its dotted path, the first under which it is found."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Layer):
        value.path = value.path or prefix
    if isinstance(value, Instance) and isinstance(value.attrs.get("__layer__"), Layer):
        value.attrs["__layer__"].path = value.attrs["__layer__"].path or prefix
    for name, weight in parameters_of(value):
        own = name.startswith("weight") and not children(value)  # a layer made by hand goes by its own name
        weight.layer.path = weight.layer.path or ".".join(part for part in (prefix, "" if own else name) if part)
    for key, child in children(value):
        name_paths(child, f"{prefix}.{key}" if prefix else str(key), seen)


def live_tensors(values: Any) -> list[Tensor]:
    """All live tensors inside arguments, in order."""
    out: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, (list, tuple)):
            out.extend(live_tensors(value))
        elif isinstance(value, dict):
            out.extend(live_tensors(value.values()))
    return out
