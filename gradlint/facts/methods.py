"""Methods of values that the reader models itself: modules, containers, lists, dicts, strings, tensors."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from gradlint.facts import torch_ops as ops
from gradlint.facts.module_tree import children, layers_of, live_tensors, modules_of
from gradlint.facts.values import (
    UNKNOWN,
    Bound,
    Container,
    Env,
    FuncValue,
    Instance,
    Layer,
    OpenList,
    Partial,
    Tensor,
    Value,
    Weight,
)

if TYPE_CHECKING:
    from gradlint.facts.calls import CallTable
    from gradlint.facts.interp import Interp

from gradlint.facts.initialisers import initialise

_PLAIN = (int, float, str, bool, type(None))


class Methods:
    """Method calls, for one reading."""

    def __init__(self, table: CallTable, interp: Interp) -> None:
        self.table = table
        self.interp = interp

    def call_bound(self, func: Bound, args: list[Value], kwargs: dict[str, Value], node: ast.Call, env: Env) -> Value:
        owner, name = func.owner, func.name
        if isinstance(owner, Tensor):
            if name in ops.FUNCTIONS:
                return self.table.function(name, [owner, *args], kwargs, node.lineno)
            return self.table.unknown_call([owner, *args], kwargs, node.lineno)
        if isinstance(owner, Weight):
            if not self.interp.maybe:
                initialise(name, [owner, *args], kwargs, (env.module.path, node.lineno))
            elif name.endswith("_"):
                self.table.touch([owner])
            return owner
        if isinstance(owner, (Instance, Layer, Container)):
            return self._module_method(owner, name, args, kwargs, node)
        if isinstance(owner, list):
            return self._list_method(owner, name, args)
        if isinstance(owner, dict):
            return self._dict_method(owner, name, args)
        if isinstance(owner, str):
            return self._str_method(owner, name, args)
        return self.table.unknown_call(args, kwargs, node.lineno)

    def _module_method(
        self, owner: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: ast.Call
    ) -> Value:
        if name in (
            "to",
            "cuda",
            "cpu",
            "float",
            "half",
            "double",
            "train",
            "eval",
            "requires_grad_",
            "type",
            "compile",
        ):
            return owner
        if name == "apply" and args:
            for m in modules_of(owner):
                self._guarded(args[0], [m])
            return owner
        if name in ("modules", "children"):
            return list(modules_of(owner)) if name == "modules" else [c for _, c in children(owner)]
        if name in ("named_modules", "named_children"):
            if name == "named_children":
                return [(str(n), c) for n, c in children(owner)]
            return [(str(i), m) for i, m in enumerate(modules_of(owner))]
        if name in ("parameters", "named_parameters"):
            weights = [Weight(layer, w) for layer in layers_of(owner) for w in ("weight", "bias")]
            return weights if name == "parameters" else [(f"layer.{w.name}", w) for w in weights]
        if isinstance(owner, Instance):
            if name in ("add_module", "register_module") and len(args) == 2 and isinstance(args[0], str):
                items = owner.attrs.get("__items__")
                if isinstance(items, Container):
                    self.table.containers.add_item(items, args[0], args[1])
                owner.attrs[args[0]] = args[1]
                return None
            items = owner.attrs.get("__items__")
            if name == "__init__" and isinstance(items, Container):
                self.table.containers.extend_container(
                    items, OpenList(args) if isinstance(args, OpenList) else list(args)
                )
                return None
            if name == "__init__" and (base := self.table.objects.layer_base(owner.cls)) is not None:
                owner.attrs["__layer__"] = self.table.layer(base, args, kwargs, node, Env(owner.cls.module))
                return None
            if name == "forward" and isinstance(owner.attrs.get("__layer__"), Layer):
                return self.table.apply(owner.attrs["__layer__"], args, kwargs, node.lineno)
            if name == "forward" and isinstance(items, Container):
                return self.table.apply(items, args, kwargs, node.lineno)
            if name in ("load_state_dict", "_load_from_state_dict", "load_weights", "load_pretrained"):
                for layer in layers_of(owner):
                    layer.init = "loaded"
                return UNKNOWN
            if isinstance(items, Container):
                owner = items
        if isinstance(owner, Container):
            return self._container_method(owner, name, args, kwargs, node)
        if isinstance(owner, Layer) and name == "forward":
            return self.table.apply(owner, args, kwargs, node.lineno)
        if isinstance(owner, Layer) and name == "reset_parameters":
            owner.init, owner.init_at = "default", None
            return None
        if isinstance(owner, Layer) and name == "load_state_dict":
            owner.init = "loaded"
            return None
        return self.table.unknown_call(args, kwargs, node.lineno) if live_tensors(args) else UNKNOWN

    def _container_method(
        self, owner: Container, name: str, args: list[Value], kwargs: dict[str, Value], node: ast.Call
    ) -> Value:
        if name == "append" and args:
            self.table.containers.add_item(owner, None, args[0])
            return owner
        if name == "extend" and args:
            self.table.containers.extend_container(owner, args[0])
            return owner
        if name in ("add_module", "register_module") and len(args) == 2:
            self.table.containers.add_item(owner, args[0] if isinstance(args[0], str) else None, args[1])
            return None
        if name == "insert" and len(args) == 2 and isinstance(args[0], int):
            owner.items.insert(args[0], args[1])
            owner.names = [str(i) for i in range(len(owner.items))]
            return None
        if name == "forward":
            return self.table.apply(owner, args, kwargs, node.lineno)
        if name == "keys":
            return list(owner.names)
        if name == "values":
            return list(owner.items)
        if name == "items":
            return list(zip(owner.names, owner.items, strict=True))
        if name == "load_state_dict":
            for layer in layers_of(owner):
                layer.init = "loaded"
            return UNKNOWN
        return UNKNOWN

    def _list_method(self, owner: list[Value], name: str, args: list[Value]) -> Value:
        if name == "append" and args:
            if self.interp.uncertain:
                self.interp.complete = False
            owner.append(args[0])
        elif name == "extend" and args:
            self.table.containers.list_extend(owner, args[0])
        elif name == "insert" and len(args) == 2 and isinstance(args[0], int):
            owner.insert(args[0], args[1])
        elif name == "pop" and owner:
            index = args[0] if args else -1
            return owner.pop(index) if isinstance(index, int) and -len(owner) <= index < len(owner) else UNKNOWN
        elif name == "reverse":
            owner.reverse()
        elif name == "copy":
            return type(owner)(owner)
        elif name in ("index", "count", "sort", "remove", "clear"):
            if name == "clear":
                owner.clear()
            return UNKNOWN
        return None

    def _dict_method(self, owner: dict[Any, Value], name: str, args: list[Value]) -> Value:
        if name in ("get", "pop", "setdefault") and args:
            key = args[0]
            if not isinstance(key, (str, int, bool)):
                return UNKNOWN
            value = owner.get(key, args[1] if len(args) > 1 else None)
            if name == "pop":
                owner.pop(key, None)
            if name == "setdefault":
                owner.setdefault(key, value)
            return value
        if name == "keys":
            return list(owner)
        if name == "values":
            return list(owner.values())
        if name == "items":
            return list(owner.items())
        if name == "update" and args and isinstance(args[0], dict):
            owner.update(args[0])
            return None
        if name == "copy":
            return dict(owner)
        return UNKNOWN

    def _str_method(self, owner: str, name: str, args: list[Value]) -> Value:
        if name in ("lower", "upper", "strip", "title", "capitalize") and not args:
            return getattr(owner, name)()
        if name in ("startswith", "endswith") and args and isinstance(args[0], (str, tuple)):
            return UNKNOWN if isinstance(args[0], tuple) else getattr(owner, name)(args[0])
        if name in ("find", "count", "endswith") and len(args) == 1 and isinstance(args[0], str):
            return getattr(owner, name)(args[0])
        if name == "split":
            return owner.split(args[0]) if args and isinstance(args[0], str) and args[0] else owner.split()
        if name == "format" and all(isinstance(a, _PLAIN) for a in args):
            try:
                return owner.format(*args)
            except (IndexError, KeyError, ValueError, AttributeError, TypeError):
                return UNKNOWN
        if name == "replace" and len(args) == 2 and all(isinstance(a, str) for a in args):
            return owner.replace(*args)
        return UNKNOWN

    def _guarded(self, func: Value, args: list[Value]) -> None:
        """Call a project function on a module for its effect on initialisation."""
        if isinstance(func, (FuncValue, Partial)):
            node = ast.Call(func=ast.Name("apply"), args=[], keywords=[], lineno=0, col_offset=0)
            bare = func.func if isinstance(func, Partial) else func
            if isinstance(bare, FuncValue):
                self.table.call(func, args, {}, node, Env(bare.module))
                return
        self.table.touch(args)
