"""What a call means: of torch's layers and functions, of containers, of project code."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradlint.facts import torch_ops as ops
from gradlint.facts.module_tree import layers_of, live_tensors
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
    Partial,
    Ref,
    Value,
    Weight,
)
from gradlint.probe.worker.layergraph import (
    ACTIVATION,
    ATTENTION,
    CONSTANT,
    INPUT,
    JOIN,
    NORM,
    RECURRENT,
    TRANSPARENT,
    WEIGHT,
)
from gradlint.probe.worker.layergraph import (
    UNKNOWN as UNKNOWN_KIND,
)

if TYPE_CHECKING:
    from gradlint.facts.interp import Interp

from gradlint.facts.builtin_calls import Builtins
from gradlint.facts.containers import Containers
from gradlint.facts.initialisers import drawn, initialise
from gradlint.facts.methods import Methods
from gradlint.facts.objects import Objects

_FUNCTION_PREFIXES = (
    "torch.nn.functional.",
    "torch.special.",
    "torch._C._nn.",
    "torch.Tensor.",
    "torch.",
    "einops.",
)
_GAINS = {"linear": 1.0, "conv2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}
"""``torch.nn.init.calculate_gain``, as its documentation lists it; leaky_relu with slope 0.01 is near relu."""


class CallTable:
    """The meaning of calls, for one :class:`~gradlint.facts.interp.Interp`; the rest is in its four parts."""

    def __init__(self, interp: Interp) -> None:
        self.interp = interp
        self.objects = Objects(self, interp)
        self.containers = Containers(self, interp)
        self.methods = Methods(self, interp)
        self.builtins = Builtins(self, interp)

    def call(self, func: Value, args: list[Value], kwargs: dict[str, Value], node: ast.Call, env: Env) -> Value:
        """The value of ``func(*args, **kwargs)``."""
        if isinstance(func, Partial):
            return self.call(func.func, [*func.args, *args], {**func.kwargs, **kwargs}, node, env)
        if isinstance(func, FuncValue):
            return self.interp.call_function(func, args, kwargs)
        if isinstance(func, ClassValue):
            return self.objects.construct(func, args, kwargs)
        if isinstance(func, Ref):
            return self._call_ref(func.name, args, kwargs, node, env)
        if isinstance(func, (Layer, Container, Instance)):
            return self.apply(func, args, kwargs, node.lineno)
        if isinstance(func, Bound):
            return self.methods.call_bound(func, args, kwargs, node, env)
        return self.unknown_call(args, kwargs, node.lineno)

    def unknown_call(self, args: Sequence[Value], kwargs: dict[str, Value], line: int) -> Value:
        """A call that cannot be followed: live tensors come out of it as something unknown."""
        live = live_tensors([*args, *kwargs.values()])
        self.touch([*args, *kwargs.values()])
        if live:
            self.interp.complete = False
            return self.interp.emit(UNKNOWN_KIND, "call", live, line=line)
        return UNKNOWN

    def touch(self, values: Sequence[Value]) -> None:
        """Layers or models handed to code that cannot be seen may have been initialised there."""
        for value in values:
            if isinstance(value, Weight):
                value.layer.init, value.layer.init_at = "unknown", None
            elif isinstance(value, (Layer, Container, Instance)):
                for layer in layers_of(value):
                    layer.init, layer.init_at = "unknown", None

    def _container(self, cls: str, args: Sequence[Value], kwargs: dict[str, Value], node: ast.Call, env: Env) -> Value:
        container = Container(cls, [], [], node.lineno, node.col_offset, file=env.module.path)
        container.end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
        if cls == "Sequential":
            if isinstance(args, OpenList):
                container.open = True
            self.containers.extend_container(container, OpenList(args) if isinstance(args, OpenList) else list(args))
            self.interp.containers.append(container)
        elif args:
            self.containers.extend_container(container, args[0])
        return container

    def _call_ref(self, name: str, args: list[Value], kwargs: dict[str, Value], node: ast.Call, env: Env) -> Value:
        short = name.rpartition(".")[2]
        if name.startswith("builtins."):
            return self.builtins.builtin(short, args, kwargs, node, env)
        if short == "calculate_gain":
            return _GAINS.get(args[0], UNKNOWN) if args and isinstance(args[0], str) else UNKNOWN
        if name.startswith(("torch.nn.init.", "torch.nn.modules.init.")):
            if self.interp.maybe:
                self.touch(args[:1])
            else:
                initialise(short, args, kwargs, (env.module.path, node.lineno))
            return args[0] if args else UNKNOWN
        if name in ("torch.nn.Parameter", "torch.nn.parameter.Parameter"):
            init = drawn(node.args[0], lambda e: self.interp.eval(e, env)) if node.args else "unknown"
            layer = Layer("Parameter", WEIGHT, "matmul", node.lineno, init=init, init_at=(env.module.path, node.lineno))
            return Weight(layer, "weight")
        if name in ("torch.utils.checkpoint.checkpoint", "torch.utils.checkpoint.checkpoint_sequential") and args:
            return self.call(args[0], args[1:], {}, node, env)
        if name.startswith("torch.nn.") and (short[:1].isupper()):
            return self.layer(short, args, kwargs, node, env)
        if short in ("weight_norm", "spectral_norm", "parametrizations") and args:
            return args[0]
        if name == "functools.partial" and args:
            return Partial(args[0], tuple(args[1:]), kwargs)
        if name in ("collections.OrderedDict", "typing.OrderedDict"):
            return self.builtins.builtin("dict", args, kwargs, node, env)
        if name == "dataclasses.field":
            factory = kwargs.get("default_factory")
            return self.call(factory, [], {}, node, env) if factory is not None else kwargs.get("default", UNKNOWN)
        if name in ("copy.deepcopy", "copy.copy") and args:
            return self._copy(args[0])
        if name == "itertools.chain":
            return (
                OpenList([UNKNOWN])
                if any(self.interp.iterate(a) is None for a in args)
                else [v for a in args for v in (self.interp.iterate(a) or [])]
            )
        if name == "math.sqrt" and args and isinstance(args[0], (int, float)) and args[0] >= 0:
            return math.sqrt(args[0])
        if (
            name in ("math.log2", "math.log", "numpy.log2")
            and args
            and isinstance(args[0], (int, float))
            and args[0] > 0
        ):
            return math.log2(args[0]) if short == "log2" else math.log(args[0])
        if name in ("math.ceil", "math.floor") and args and isinstance(args[0], (int, float)):
            return math.ceil(args[0]) if short == "ceil" else math.floor(args[0])
        for prefix in _FUNCTION_PREFIXES:
            if name.startswith(prefix) and short in ops.FUNCTIONS:
                return self.function(short, args, kwargs, node.lineno)
        if name in ("einops.layers.torch.Rearrange", "einops.layers.torch.Reduce"):
            return Layer(short, TRANSPARENT, "rearrange", node.lineno)
        return self.unknown_call(args, kwargs, node.lineno)

    def _copy(self, value: Value) -> Value:
        if isinstance(value, Layer):
            return Layer(
                value.cls, value.kind, value.op, value.line, value.fan_in, value.fan_out, value.init,
                uncertain=value.uncertain, attrs=dict(value.attrs), init_at=value.init_at,
            )  # fmt: skip
        if isinstance(value, Container):
            copied = Container(value.cls, [self._copy(v) for v in value.items], list(value.names), value.line)
            copied.open, copied.nested = value.open, True
            return copied
        if isinstance(value, Instance):
            return Instance(value.cls, {k: self._copy(v) for k, v in value.attrs.items()}, value.is_module)
        if isinstance(value, list):
            return type(value)(self._copy(v) for v in value)
        return value

    def layer(self, cls: str, args: list[Value], kwargs: dict[str, Value], node: ast.Call, env: Env) -> Value:
        line = node.lineno
        if cls in ops.CONTAINERS:
            return self._container(cls, args, kwargs, node, env)
        uncertain = bool(self.interp.uncertain)
        if cls in ops.WEIGHT_LAYERS:
            op, first, second = ops.WEIGHT_LAYERS[cls]
            fan_in, fan_out = self._fans(op, cls, first, second, args, kwargs)
            return Layer(cls, WEIGHT, op, line, fan_in, fan_out, uncertain=uncertain)
        for table, kind in ((ops.ACTIVATION_LAYERS, ACTIVATION), (ops.NORM_LAYERS, NORM)):
            if cls in table:
                return Layer(cls, kind, table[cls], line, uncertain=uncertain)
        if cls in ops.TRANSPARENT_LAYERS:
            return Layer(cls, TRANSPARENT, cls.lower(), line, uncertain=uncertain)
        if cls in ops.RECURRENT_LAYERS:
            return Layer(cls, RECURRENT, cls.lower(), line)
        if cls in ops.ATTENTION_LAYERS:
            return Layer(cls, ATTENTION, cls.lower(), line)
        if cls in ops.EMBEDDING_LAYERS:
            return Layer(cls, INPUT, "embedding", line)
        if cls == "Module":
            return Layer(cls, UNKNOWN_KIND, "module", line)
        return Layer(cls, UNKNOWN_KIND, cls.lower(), line)

    def _fans(
        self, op: str, cls: str, first: str, second: str, args: Sequence[Value], kwargs: dict[str, Value]
    ) -> tuple[int | None, int | None]:
        names = [n for n in (first, second) if n]
        values = dict(zip([*names, "kernel_size"], args, strict=False))
        values.update(kwargs)
        fan_in, fan_out = _int(values.get(first)) if first else None, _int(values.get(second))
        if op == "linear":
            return fan_in, fan_out
        kernel = values.get("kernel_size")
        dims = ops.SPATIAL_DIMS[cls[-2:]]
        size: int | None = None
        if isinstance(kernel, int):
            size = kernel**dims
        elif isinstance(kernel, (tuple, list)) and kernel and all(isinstance(v, int) for v in kernel):
            size = math.prod(kernel)
        groups = _int(values.get("groups")) or 1
        if op.startswith("conv_transpose"):
            fan_in, fan_out = fan_out, fan_in  # torch computes fan_in from the weight's second dimension
        return (
            fan_in // groups * size if fan_in and size else None,
            fan_out * size if fan_out and size else None,
        )

    def apply(self, module: Value, args: Sequence[Value], kwargs: dict[str, Value], line: int) -> Value:
        """``module(*args)``."""
        if isinstance(module, Instance):
            forward = self.objects.find_method(module.cls, "forward") or self.objects.find_method(
                module.cls, "__call__"
            )
            if forward is not None:
                func = FuncValue(forward.node, forward.module, forward.env, module, forward.owner)
                return self.interp.call_function(func, args, kwargs)
            for inner in ("__items__", "__layer__"):
                if inner in module.attrs:
                    return self.apply(module.attrs[inner], args, kwargs, line)
            return self.unknown_call(args, kwargs, line)
        if isinstance(module, Container):
            if module.cls != "Sequential" or not args:
                return self.unknown_call(args, kwargs, line)
            if module.open:
                self.interp.complete = False
            value: Value = args[0]
            for item in module.items:
                if isinstance(item, (Layer, Container, Instance)):
                    value = self.apply(item, [value], {}, line)
                else:
                    value = self.unknown_call([value], {}, line)
            return value
        assert isinstance(module, Layer)
        live = live_tensors([*args, *kwargs.values()])
        if module.kind == INPUT:
            return self.interp.emit(INPUT, module.op, live, module)
        if not live:
            return UNKNOWN
        if module.kind == WEIGHT or module.kind in (ACTIVATION, NORM, TRANSPARENT):
            live = live[:1]
        if module.kind == UNKNOWN_KIND:
            self.interp.complete = False
        out = self.interp.emit(module.kind, module.op, live, module)
        return (out, out) if module.kind == RECURRENT else out

    def function(self, name: str, args: Sequence[Value], kwargs: dict[str, Value], line: int) -> Value:
        """A function of torch, or a method of a tensor, on live tensors."""
        kind, op = ops.FUNCTIONS[name]
        everything = [*args, *kwargs.values()]
        live = live_tensors(everything)
        if not live or kind == CONSTANT:
            return UNKNOWN
        if kind == WEIGHT:
            second = kwargs.get("weight", args[1] if len(args) > 1 else None)  # `F.linear(x, weight, bias)`
            layer = second.layer if isinstance(second, Weight) else Layer("Parameter", WEIGHT, op, line, init="unknown")
            return self.interp.emit(WEIGHT, op, live[:1], layer, line)
        if kind == JOIN and len(live) == 1:
            if op in ("matmul", "mm", "bmm", "addmm", "einsum"):
                weight = next((v for v in everything if isinstance(v, Weight)), None)
                if weight is not None:
                    return self.interp.emit(WEIGHT, op, live, weight.layer, line)
                self.interp.complete = False
                return self.interp.emit(UNKNOWN_KIND, op, live, line=line)
            if op in ("where", "outer", "cdist", "dot", "cross"):
                return self.interp.emit(UNKNOWN_KIND, op, live, line=line)
            kind = TRANSPARENT
        if kind in (ACTIVATION, NORM) or (kind == TRANSPARENT and op not in ("max", "min")):
            live = live[:1]
        return self.interp.emit(kind, op, live, line=line)


def _int(value: Value) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
