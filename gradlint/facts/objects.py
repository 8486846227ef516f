"""Classes of the project and their instances: construction, inheritance, attributes."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gradlint.facts import torch_ops as ops
from gradlint.facts.module_tree import children
from gradlint.facts.values import (
    UNKNOWN,
    Bound,
    ClassValue,
    Container,
    Env,
    FuncValue,
    Instance,
    Layer,
    Place,
    Ref,
    Super,
    Value,
    Weight,
)

if TYPE_CHECKING:
    from gradlint.facts.calls import CallTable
    from gradlint.facts.interp import Interp


MODULE_BASES = ("torch.nn.Module", "torch.nn.modules.module.Module", "torch.jit.ScriptModule")
_MODULE_LIKE_SUFFIXES = ("LightningModule", "PreTrainedModel", "ModelMixin", "BaseModule", "BaseModel", "nn.Module")


class Objects:
    """Project classes and instances, for one reading."""

    def __init__(self, table: CallTable, interp: Interp) -> None:
        self.table = table
        self.interp = interp

    def construct(self, cls: ClassValue, args: Sequence[Value], kwargs: dict[str, Value]) -> Value:
        """An instance of a project class, its ``__init__`` followed."""
        instance = Instance(cls, is_module=self.is_module(cls), made_with=(tuple(args), dict(kwargs)))
        base = self.container_base(cls)
        if base is not None:
            instance.attrs["__items__"] = Container(base, [], [], cls.node.lineno, nested=True)
        layer = self.layer_base(cls)
        init = self.find_method(cls, "__init__")
        if init is not None:
            self.interp.call_function(FuncValue(init.node, init.module, init.env, instance, init.owner), args, kwargs)
        elif layer is not None:
            instance.attrs["__layer__"] = self.table.layer(
                layer, list(args), dict(kwargs), _made_at(cls), Env(cls.module)
            )
        elif base == "Sequential":
            self.table.containers.extend_container(instance.attrs["__items__"], list(args))
        else:
            self._dataclass(instance, cls, args, kwargs)
        return instance

    def _dataclass(self, instance: Instance, cls: ClassValue, args: Sequence[Value], kwargs: dict[str, Value]) -> None:
        fields = [n for n in cls.node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        for f, value in zip(fields, args, strict=False):
            assert isinstance(f.target, ast.Name)
            instance.attrs[f.target.id] = value
        instance.attrs.update(kwargs)

    def mro(self, cls: ClassValue, seen: tuple[int, ...] = ()) -> Iterator[ClassValue]:
        """The class and its project bases, depth first; cycles are cut."""
        if id(cls.node) in seen or len(seen) > 20:
            return
        yield cls
        env = cls.env or Env(cls.module)
        for base in cls.node.bases:
            value = self.interp.eval(base, env)
            if isinstance(value, ClassValue):
                yield from self.mro(value, (*seen, id(cls.node)))

    def is_module(self, cls: ClassValue) -> bool:
        """Whether a class derives from ``nn.Module``, as far as the project tells."""
        for c in self.mro(cls):
            env = c.env or Env(c.module)
            for base in c.node.bases:
                value = self.interp.eval(base, env)
                if isinstance(value, Ref) and (
                    value.name in MODULE_BASES
                    or value.name.startswith("torch.nn.")
                    or value.name.endswith(_MODULE_LIKE_SUFFIXES)
                ):
                    return True
        return False

    def container_base(self, cls: ClassValue) -> str | None:
        """``Sequential``, ``ModuleList`` or ``ModuleDict`` where the class derives from one."""
        for c in self.mro(cls):
            env = c.env or Env(c.module)
            for base in c.node.bases:
                value = self.interp.eval(base, env)
                if isinstance(value, Ref) and value.name.rpartition(".")[2] in ops.CONTAINERS:
                    return value.name.rpartition(".")[2]
        return None

    def layer_base(self, cls: ClassValue) -> str | None:
        """The layer of ``torch.nn`` that the class derives from, if any: ``class CausalConv(nn.Conv1d)``."""
        for c in self.mro(cls):
            env = c.env or Env(c.module)
            for base in c.node.bases:
                value = self.interp.eval(base, env)
                if isinstance(value, Ref) and value.name.startswith("torch.nn."):
                    short = value.name.rpartition(".")[2]
                    if short in ops.LEAF_LAYERS:
                        return short
        return None

    def find_method(self, cls: ClassValue, name: str, after: ClassValue | None = None) -> FuncValue | None:
        """The method ``name`` along the project's bases; ``after``: only past that class (``super()``)."""
        started = after is None
        for c in self.mro(cls):
            if started:
                for node in c.node.body:
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                        return FuncValue(node, c.module, c.env, owner=c)
            if after is not None and c.node is after.node:
                started = True
        return None

    def object_attribute(self, owner: Value, name: str) -> Value:
        """``instance.name``, ``super().name``, ``Class.name``."""
        if isinstance(owner, Super):
            method = self.find_method(owner.instance.cls, name, after=owner.owner)
            if method is None:
                return Bound(owner.instance, name)
            return FuncValue(method.node, method.module, method.env, owner.instance, method.owner)
        cls = owner if isinstance(owner, ClassValue) else owner.cls
        if isinstance(owner, Instance) and name in owner.attrs:
            return owner.attrs[name]
        if isinstance(owner, Instance) and name in ("weight", "bias") and "__layer__" in owner.attrs:
            return Weight(owner.attrs["__layer__"], name)
        if isinstance(owner, Instance) and owner.is_module and name == "_modules":
            return {str(key): child for key, child in children(owner)}
        method = self.find_method(cls, name)
        if method is not None:
            return self._bind_method(method, owner)
        for c in self.mro(cls):
            for node in c.node.body:
                value = _class_assignment(node, name)
                if value is not None:
                    return self.interp.eval(value, c.env or Env(c.module))
        return Bound(owner, name)

    def _bind_method(self, method: FuncValue, owner: Value) -> Value:
        decorators = {ast.unparse(d).rpartition(".")[2] for d in getattr(method.node, "decorator_list", [])}
        if "staticmethod" in decorators:
            return method
        if "classmethod" in decorators:
            bound = owner if isinstance(owner, ClassValue) else owner.cls
            return FuncValue(method.node, method.module, method.env, bound, method.owner)
        if isinstance(owner, ClassValue):
            return method
        func = FuncValue(method.node, method.module, method.env, owner, method.owner)
        if decorators & {"property", "cached_property"}:
            return self.interp.call_function(func, [], {})
        return func

    def super_of(self, env: Env) -> Value:
        """``super()`` in a method."""
        here: Env | None = env
        while here is not None and "__class__" not in here.vars:
            here = here.parent
        if here is None:
            return UNKNOWN
        instance = next(iter(here.vars.values()), None)
        for value in here.vars.values():
            if isinstance(value, Instance):
                instance = value
                break
        owner = here.vars["__class__"]
        return Super(instance, owner) if isinstance(instance, Instance) else UNKNOWN

    def set_attribute(self, owner: Value, name: str, value: Value, place: Place) -> None:
        """``owner.name = value``, written at ``place``."""
        if isinstance(owner, Instance):
            owner.attrs[name] = value
        elif isinstance(owner, Layer) and name in ("weight", "bias"):
            if name == "weight":
                _give(owner, value, place)
        elif isinstance(owner, Layer):
            owner.attrs[name] = value
        elif isinstance(owner, Weight) and name == "data" and owner.name == "weight":
            _give(owner.layer, value, place)


def _give(layer: Layer, value: Value, place: Place) -> None:
    """A weight assigned: what it was initialised as, where that is a parameter made by hand."""
    layer.init = value.layer.init if isinstance(value, Weight) and value.layer is not layer else "unknown"
    layer.init_at = place


def _class_assignment(node: ast.stmt, name: str) -> ast.expr | None:
    if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
        return node.value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
        return node.value
    return None


def _made_at(cls: ClassValue) -> ast.Call:
    """A stand-in for the call that makes a layer, on the line of the class."""
    return ast.Call(func=ast.Name(cls.node.name), args=[], keywords=[], lineno=cls.node.lineno, col_offset=0)
