"""Calls of Python's builtins, on values that are known."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradlint.facts.module_tree import live_tensors
from gradlint.facts.values import (
    UNKNOWN,
    Bound,
    ClassValue,
    Container,
    Env,
    FuncValue,
    Instance,
    Layer,
    OpenList,
    Ref,
    Tensor,
    Value,
    Weight,
)
from gradlint.probe.worker.layergraph import (
    JOIN,
    NORM,
    WEIGHT,
)

if TYPE_CHECKING:
    from gradlint.facts.calls import CallTable
    from gradlint.facts.interp import Interp

from gradlint.facts.objects import MODULE_BASES

_PLAIN = (int, float, str, bool, type(None))


class Builtins:
    """Builtins, for one reading."""

    def __init__(self, table: CallTable, interp: Interp) -> None:
        self.table = table
        self.interp = interp

    def builtin(self, name: str, args: list[Value], kwargs: dict[str, Value], node: ast.Call, env: Env) -> Value:
        handler: Callable[..., Value] | None = getattr(self, "_b_" + name, None)
        if handler is not None:
            return handler(args, kwargs, node)
        if name in ("int", "float", "str", "bool", "abs", "round", "min", "max", "sum", "pow", "divmod"):
            return self._number(name, args)
        return self.table.unknown_call(args, kwargs, node.lineno)

    def _number(self, name: str, args: list[Value]) -> Value:
        flat = list(args[0]) if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
        if name == "sum" and flat and all(isinstance(v, list) for v in flat):
            return type(flat[0])(v for part in flat for v in part)
        live = live_tensors(flat)
        if live:
            return self.interp.emit(JOIN, name, live) if len(live) > 1 else live[0]
        if not flat or not all(isinstance(v, _PLAIN) and v is not None for v in flat):
            return UNKNOWN
        functions: dict[str, Callable[..., Value]] = {
            "int": int, "float": float, "str": str, "bool": bool, "abs": abs, "round": round, "pow": _small_pow,
            "divmod": divmod, "min": min, "max": max, "sum": sum,
        }  # fmt: skip
        try:
            return functions[name](flat) if name in ("min", "max", "sum") else functions[name](*args)
        except (TypeError, ValueError, ArithmeticError):
            return UNKNOWN

    def _b_range(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        if args and all(isinstance(a, int) for a in args):
            try:
                return range(*args)
            except (TypeError, ValueError):
                return UNKNOWN
        return UNKNOWN

    def _b_len(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        value = args[0] if args else UNKNOWN
        if isinstance(value, OpenList) or (isinstance(value, Container) and value.open):
            self.interp.complete = False
        if isinstance(value, Instance) and "__items__" in value.attrs:
            value = value.attrs["__items__"]
        if isinstance(value, Container):
            return len(value.items)
        return len(value) if isinstance(value, (list, tuple, dict, str, range)) else UNKNOWN

    def _b_enumerate(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        items = self.interp.iterate(args[0]) if args else None
        start = kwargs.get("start", args[1] if len(args) > 1 else 0)
        if items is None or not isinstance(start, int):
            return UNKNOWN
        return [(i, v) for i, v in enumerate(items, start)]

    def _b_zip(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        columns = [self.interp.iterate(a) for a in args]
        known = [c for c in columns if c is not None]
        if not known or len(known) < len(columns):
            return UNKNOWN
        return [tuple(row) for row in zip(*known, strict=False)]

    def _b_reversed(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        items = self.interp.iterate(args[0]) if args else None
        return UNKNOWN if items is None else items[::-1]

    def _b_list(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        if not args:
            return []
        if isinstance(args[0], OpenList):
            return OpenList(args[0])
        items = self.interp.iterate(args[0])
        return UNKNOWN if items is None else items

    def _b_tuple(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        value = self._b_list(args, kwargs, node)
        return tuple(value) if type(value) is list else value

    _b_sorted = _b_list

    def _b_dict(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        out: dict[Any, Value] = {}
        if args and isinstance(args[0], dict):
            out.update(args[0])
        elif args:
            for pair in self.interp.iterate(args[0]) or []:
                if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], (str, int)):
                    out[pair[0]] = pair[1]
        out.update(kwargs)
        return out

    def _b_getattr(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        if len(args) >= 2 and isinstance(args[1], str):
            value = self.interp.attribute(args[0], args[1], node.lineno)
            if isinstance(value, Bound) and isinstance(value.owner, Instance) and len(args) > 2:
                return args[2]
            return value
        return UNKNOWN

    def _b_hasattr(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        if len(args) == 2 and isinstance(args[1], str):
            owner = args[0]
            if isinstance(owner, Layer):
                if args[1] in ("weight", "bias"):
                    return owner.kind in (WEIGHT, NORM)
                return args[1] in owner.attrs
            if isinstance(owner, Instance):
                found = self.table.objects.object_attribute(owner, args[1])
                return not (isinstance(found, Bound) and found.owner is owner)
            if isinstance(owner, Container):
                return False
            if isinstance(owner, Weight):
                return args[1] in _OF_WEIGHTS or UNKNOWN
        return UNKNOWN

    def _b_type(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        return self.interp.class_of(args[0]) if len(args) == 1 else UNKNOWN

    def _b_setattr(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        if len(args) == 3 and isinstance(args[1], str):
            self.table.objects.set_attribute(args[0], args[1], args[2], (self.interp.path, self.interp.here))
        return None

    def _b_isinstance(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        if len(args) != 2:
            return UNKNOWN
        kinds = args[1] if isinstance(args[1], tuple) else (args[1],)
        answers = [self._is_a(args[0], k) for k in kinds]
        return True if True in answers else UNKNOWN if UNKNOWN in answers else False

    def _is_a(self, value: Value, kind: Value) -> Value:
        if isinstance(kind, Ref):
            short = kind.name.rpartition(".")[2]
            if isinstance(value, Layer):
                return _layer_is(value, kind.name, short)
            if isinstance(value, Container):
                return kind.name == f"torch.nn.{value.cls}" or kind.name in MODULE_BASES
            if isinstance(value, Instance):
                if kind.name in MODULE_BASES:
                    return value.is_module
                inner = value.attrs.get("__layer__")
                if isinstance(inner, Layer):
                    return _layer_is(inner, kind.name, short)
                base = self.table.objects.container_base(value.cls)
                return base is not None and kind.name == f"torch.nn.{base}"
            if isinstance(value, Tensor):
                return short == "Tensor"
            table = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "dict": dict}
            if kind.name.startswith("builtins.") and short in table and value is not UNKNOWN:
                return isinstance(value, table[short])
            return UNKNOWN if value is UNKNOWN else False
        if isinstance(kind, ClassValue):
            if isinstance(value, Instance):
                return any(c.node is kind.node for c in self.table.objects.mro(value.cls))
            return UNKNOWN if value is UNKNOWN else False
        return UNKNOWN

    def _b_staticmethod(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        return args[0] if args else UNKNOWN

    _b_classmethod = _b_staticmethod

    def _b_print(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        return None

    def _b_map(self, args: list[Value], kwargs: dict[str, Value], node: ast.Call) -> Value:
        items = self.interp.iterate(args[1]) if len(args) == 2 else None
        if items is None:
            return UNKNOWN
        anywhere = args[0].module if isinstance(args[0], (FuncValue, ClassValue)) else None
        return (
            [self.table.call(args[0], [v], {}, node, Env(anywhere)) for v in items] if anywhere is not None else UNKNOWN
        )


def _layer_is(layer: Layer, name: str, short: str) -> Value:
    if name in MODULE_BASES:
        return True
    if short == layer.cls:
        return True
    if short in ("_ConvNd", "_ConvTransposeNd"):
        return layer.op.startswith("conv")
    if short in ("_BatchNorm", "_NormBase"):
        return layer.op in ("batch_norm", "sync_batch_norm")
    return False


def _small_pow(a: float, b: float) -> Value:
    return a**b if abs(b) <= 64 and abs(a) < 1e6 else UNKNOWN


_OF_WEIGHTS = frozenset({"data", "grad", "shape", "size", "requires_grad", "dtype", "device"})
"""Some of the attributes that every parameter has."""
