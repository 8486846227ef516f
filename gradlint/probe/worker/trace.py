"""The layer graph of a real forward pass, read off the torch functions that it calls.

:class:`Tracer` is a ``TorchFunctionMode``: every call of a torch function becomes a node, connected by the identity of
the tensors that it takes and gives. A value is *live* if it was computed from the model's inputs or by a weight layer;
values made of parameters alone (positional embeddings, normalised weights) are not live until a weight layer or a
lookup uses them. An :class:`Intervention` may replace weights, outputs and activations by their running number.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from layergraph import (
    ACTIVATION,
    CONSTANT,
    INPUT,
    JOIN,
    OUTPUT,
    RECURRENT,
    TRANSPARENT,
    UNKNOWN,
    WEIGHT,
    LayerGraph,
    Node,
)
from model_ops import LINEAR_JOINS, PRODUCT, QUESTIONS, REPLACES_FIRST, operation
from model_tensors import carries, clamp_kind, divides_by, operands, output_tensors, swapped, tensors_in
from model_weights import Names, fans, path_of
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

VALUE_WORK = 60
"""Multiply-adds that take as long as writing one number."""


class Intervention:
    """What a run changes or looks at, by running number of the call. This one changes nothing."""

    def weight(self, call: int, weight: Tensor, names: Names) -> Tensor:
        """The tensor to use for the weight of call ``call``; same shape."""
        return weight

    def bias(self, call: int, bias: Tensor) -> Tensor:
        """The tensor to use for the bias of call ``call``; same shape."""
        return bias

    def output(self, call: int, output: Tensor, op: str) -> Tensor:
        """What goes on from the weight layer of call ``call``."""
        return output

    def activation(self, call: int, op: str, value: Tensor) -> Optional[Tensor]:
        """A result to use instead of the activation of call ``call`` on ``value``, or None."""
        return None


class TooLarge(RuntimeError):
    """A forward pass did more than it may."""


class Tracer(TorchFunctionMode):
    """Record one forward pass of ``model``. ``lines`` maps ``id(module)`` to the line that made it."""

    def __init__(
        self,
        model: nn.Module,
        lines: Mapping[int, int],
        intervention: Optional[Intervention] = None,
        limit: float = math.inf,
    ) -> None:
        super().__init__()
        self.nodes: List[Node] = []
        self.complete = True
        self.second_order = False
        self.multiply_adds = 0.0
        """Of the matrix products, over the whole batch."""
        self.values = 0.0
        """Numbers in the outputs of all operations."""
        self.limit = limit
        """Work, in multiply-adds, after which :class:`TooLarge` is raised."""
        self._lines = lines
        self._model = model
        self._intervention = intervention
        self._calls = 0
        self._live: Dict[int, Tuple[Tensor, int]] = {}
        self._names: Dict[int, Tuple[Tensor, Names]] = {}
        self._owners = dict(model.named_modules())
        self._stack: List[nn.Module] = []
        self._paths = {id(module): name for name, module in self._owners.items()}

    def trace(self, args: Sequence[Any], kwargs: Mapping[str, Any], forward: Any = None) -> Tuple[Any, List[Tensor]]:
        """Run the model. Returns its output and the floating tensors in it; what it raises passes through."""
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), (parameter, (name,)))
        for tensor in tensors_in((list(args), dict(kwargs))):
            if carries(tensor):
                self._add(INPUT, "input", (), [tensor])
        with self._watch_modules(), self:
            output = (forward or self._model)(*args, **kwargs)
        found = [t for t in output_tensors(output) if carries(t)]
        producers = [self._node_of(t) for t in found if t.requires_grad or id(t) in self._live]
        if producers:
            self._add(OUTPUT, "output", tuple(producers), [])
        return output, found

    @property
    def work(self) -> float:
        """What was computed, in multiply-adds; moving a number costs as much as many of them."""
        return self.multiply_adds + VALUE_WORK * self.values

    def graph(self, source: str) -> LayerGraph:
        """What was recorded."""
        return LayerGraph(tuple(self.nodes), source, self.complete)

    def calls(self) -> Tuple[Tuple[str, str], ...]:
        """(kind, op) of the numbered calls, in order."""
        numbered = sorted((n.call, n.kind, n.op) for n in self.nodes if n.call is not None)
        return tuple((kind, op) for _, kind, op in numbered)

    # the mode

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        name, kind, op = operation(func)
        if name in QUESTIONS or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if kind in (WEIGHT, PRODUCT):
            return self._product(func, kind, op, args, kwargs)
        if kind == ACTIVATION:
            return self._activate(func, op, args, kwargs)
        given = list(tensors_in((list(args), kwargs)))
        before = [(t, self._node_of(t)) for t in given if self._is_live(t)]
        names = self._names_in(given)
        result = func(*args, **kwargs)
        self.second_order |= name == "grad"
        if kind == CONSTANT:
            self._forget(result)
        elif kind == INPUT:
            self._record(INPUT, op, (), result, names)
        elif before:
            self._operate(name, kind, op, before, args, kwargs, result)
        elif kind == RECURRENT:
            self._record(kind, op, (), result, names)
        elif names:
            self._derive(result, names)
        return result

    def _operate(
        self,
        name: str,
        kind: str,
        op: str,
        before: List[Tuple[Tensor, int]],
        args: Sequence[Any],
        kwargs: Dict[str, Any],
        result: Any,
    ) -> None:
        """Record an operation on live values."""
        in_place = bool(args) and (result is args[0] or name == "setitem")
        if in_place and name in REPLACES_FIRST:
            before = [(t, n) for t, n in before if t is not args[0]]
        inputs = tuple(n for _, n in before)
        if name == "clamp":
            kind, op = clamp_kind(args, kwargs)
        elif kind == JOIN and len(inputs) < 2 and op != "glu":
            if op in ("max", "min"):
                kind = TRANSPARENT  # over a dimension
            else:
                kind = TRANSPARENT if name in LINEAR_JOINS and not divides_by(before, op, args) else UNKNOWN
        if kind == UNKNOWN:
            self.complete = False
        self._record(kind, op, inputs, args[0] if name == "setitem" else result)

    def _activate(self, func: Any, op: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        value = args[0] if args else kwargs.get("input")
        if not isinstance(value, Tensor) or not self._is_live(value):
            result = func(*args, **kwargs)
            names = self._names_in(list(tensors_in((list(args), kwargs))))
            if names:
                self._derive(result, names)
            return result
        node = self._node_of(value)
        call = self._next_call()
        result = self._intervention.activation(call, op, value) if self._intervention else None
        if result is None:
            result = func(*args, **kwargs)
        self._record(ACTIVATION, op, (node,), result, call=call)
        return result

    def _product(self, func: Any, kind: str, op: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        """A weight layer, if one operand is live and the other is made of parameters alone."""
        factors, bias = operands(op, args, kwargs)
        live = [t for t in factors if self._is_live(t)]
        learnt = [t for t in factors if not self._is_live(t) and self._names_in([t])]
        starts = kind == WEIGHT and len(factors) == 2 and not live and learnt and learnt[-1] is factors[1]
        if starts:  # learned queries, or features of constants: a live path begins here
            self._add(INPUT, "parameter" if len(learnt) == 2 else "constant", (), [factors[0]])
            live, learnt = [factors[0]], [factors[1]]
        if len(live) == 1 and len(learnt) == 1 and len(factors) == 2:
            width = fans(op, learnt[0], factors[1] is learnt[0], args)
            if width is not None:
                return self._weigh(func, kind, op, args, kwargs, live[0], learnt[0], bias, width)
        before = [self._node_of(t) for t in live + [b for b in bias if self._is_live(b)]]
        names = self._names_in(factors + bias)
        result = func(*args, **kwargs)
        if factors and isinstance(result, Tensor):
            self.multiply_adds += float(result.numel()) * (factors[0].shape[-1] if factors[0].dim() else 1)
        if before:
            single = len(before) == 1
            known = len(factors) == 2 and single and bool(learnt)
            self._record(TRANSPARENT if known else (UNKNOWN if single else JOIN), op, tuple(before), result)
        elif names:
            self._derive(result, names)
        return result

    def _weigh(
        self,
        func: Any,
        kind: str,
        op: str,
        args: Sequence[Any],
        kwargs: Dict[str, Any],
        value: Tensor,
        weight: Tensor,
        bias: List[Tensor],
        width: Tuple[int, int],
    ) -> Tensor:
        names, node, call = self._names_in([weight]), self._node_of(value), self._next_call()
        swap: Dict[int, Tensor] = {}
        if self._intervention is not None:
            swap[id(weight)] = self._intervention.weight(call, weight, names)
            swap.update({id(b): self._intervention.bias(call, b) for b in bias if self._names_in([b])})
        result: Tensor = func(*swapped(args, swap), **swapped(kwargs, swap))
        self.multiply_adds += float(result.numel()) * width[0]
        if self._intervention is not None:
            result = self._intervention.output(call, result, op)
        path, owner = path_of(names, self._owners)
        inputs = tuple([node] + [self._node_of(b) for b in bias if self._is_live(b)])
        attrs = {"ndim": value.dim(), **({} if weight.requires_grad else {"frozen": True})}
        self._record(
            WEIGHT if len(inputs) == 1 else JOIN, "linear" if kind == PRODUCT else op, inputs, result,
            path=path, line=self._lines.get(id(owner)), fan_in=width[0], fan_out=width[1], call=call,
            attrs=attrs,
        )  # fmt: skip
        return result

    # bookkeeping

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls - 1

    def _is_live(self, tensor: Tensor) -> bool:
        return id(tensor) in self._live or (tensor.requires_grad and not self._is_learnt(tensor) and carries(tensor))

    def _is_learnt(self, tensor: Tensor) -> bool:
        return id(tensor) in self._names or isinstance(tensor, nn.Parameter) or tensor.is_leaf

    def _names_in(self, tensors: Sequence[Tensor]) -> Names:
        names: List[str] = []
        for t in tensors:
            if id(t) in self._names:
                names.extend(self._names[id(t)][1])
            elif t.requires_grad and t.is_leaf and id(t) not in self._live:  # registered nowhere
                names.append("")
        return tuple(dict.fromkeys(names))

    def _node_of(self, tensor: Tensor) -> int:
        """The node that made a live tensor; one is made up for what no torch function gave (autograd.Function)."""
        if id(tensor) not in self._live:
            self.complete = False
            self._add(UNKNOWN, "opaque", (), [tensor])
        return self._live[id(tensor)][1]

    def _record(self, kind: str, op: str, inputs: Tuple[int, ...], result: Any, names: Names = (), **more: Any) -> None:
        found = [t for t in tensors_in(result) if carries(t)]
        if not found:
            return
        if not more.get("path"):
            path = self._paths.get(id(self._stack[-1]), "") if self._stack else ""
            more["path"] = path_of(names, self._owners)[0] if names else path
            more.setdefault("line", self._lines.get(id(self._stack[-1])) if self._stack else None)
        self.values += sum(t.numel() for t in found)
        if self.work > self.limit:
            raise TooLarge(f"more than {self.limit:.0e} multiply-adds in one forward")
        self._add(kind, op, inputs, found, **more)
        for t in found:
            base = t._base
            if base is not None and id(base) in self._live and kind != TRANSPARENT:
                self._write_through(base, t)

    def _write_through(self, base: Tensor, view: Tensor) -> None:
        """An operation in place on a view changes what it is a view of."""
        old, new = self._live[id(base)][1], self._live[id(view)][1]
        if old != new:
            self._add(JOIN, "write", (old, new), [base])

    def _add(self, kind: str, op: str, inputs: Tuple[int, ...], results: Sequence[Tensor], **more: Any) -> None:
        node = Node(id=len(self.nodes), kind=kind, op=op, inputs=inputs, **more)
        self.nodes.append(node)
        for t in results:
            self._live[id(t)] = (t, node.id)
            self._names.pop(id(t), None) if not isinstance(t, nn.Parameter) else None

    def _derive(self, result: Any, names: Names) -> None:
        for t in tensors_in(result):
            if carries(t) and id(t) not in self._names:
                self._names[id(t)] = (t, names)

    def _forget(self, result: Any) -> None:
        for t in tensors_in(result):
            self._live.pop(id(t), None)

    @contextlib.contextmanager
    def _watch_modules(self) -> Iterator[None]:
        """Keep the stack of modules whose forward is running."""

        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self._stack:
                self._stack.pop()

        register = nn.modules.module
        handles = [
            register.register_module_forward_pre_hook(enter),
            register.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def symbolic(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> LayerGraph:
    """The layer graph of ``torch.fx.symbolic_trace``, its nodes run one by one on the inputs.

    Raises what symbolic tracing raises on control flow that depends on data or shapes.
    """
    tracer = _BoundedTracer()
    module = torch.fx.GraphModule(model, tracer.trace(model))
    module.train(model.training)
    recorder = Tracer(model, {})
    recorder.trace(args, kwargs, forward=module)
    return recorder.graph("symbolic")


SYMBOLIC_LIMIT = 20_000
"""Operations after which a symbolic trace is given up; counted, not timed, so that it always ends the same way."""


class _BoundedTracer(torch.fx.Tracer):
    """Stops where a loop, unrolled, does not end."""

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if len(self.graph.nodes) > SYMBOLIC_LIMIT:
            raise RuntimeError("the symbolic trace does not end")
        return super().create_node(*args, **kwargs)
