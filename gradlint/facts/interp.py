"""Reading a model's source as a layer graph, without running it.

An abstract interpreter over the standard ``ast``: ``__init__`` is followed with the argument values that the
project tells, then ``forward`` with tensors in place of inputs. Loops of known length are unrolled; what
the text does not tell is :data:`UNKNOWN`, and a loop of unknown length is read once and marked.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradlint.facts.calls import CallTable
from gradlint.facts.modules import ModuleRef
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
    Super,
    Tensor,
    Value,
    Weight,
)
from gradlint.probe.worker.layergraph import JOIN, NORM, TRANSPARENT, WEIGHT, LayerGraph, Node

MAX_STEPS = 40_000
MAX_DEPTH = 40
MAX_UNROLL = 256
MAX_NODES = 4_000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitOr: operator.or_,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_PLAIN = (int, float, str, bool, type(None))


class TooLarge(Exception):
    """The reading was given up: more steps, depth or nodes than a static look may cost."""


class ControlFlow(Exception):
    """Control leaves the statements being read."""


class Return(ControlFlow):
    """Control leaves a function."""

    def __init__(self, value: Value) -> None:
        self.value = value


class _Break(ControlFlow):
    pass


class _Continue(ControlFlow):
    pass


class _Raise(ControlFlow):
    pass


class Interp:
    """One reading. Holds the graph being built and the budget; values hold everything else."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.complete = True
        self.uncertain = 0
        self.maybe = 0
        """How many branches are being read that may not be taken."""
        self.containers: list[Container] = []
        self.steps = 0
        self.depth = 0
        self.path, self.here = "", 0
        """The file and the line of the statement that is being read."""
        self.table = CallTable(self)
        self._handlers: dict[type[ast.AST], Callable[[Any, Env], Value]] = {}

    # -- graph ---------------------------------------------------------------------------------------

    def emit(self, kind: str, op: str, inputs: Sequence[Tensor], layer: Layer | None = None, line: int = 0) -> Tensor:
        """A new node; the tensor that it makes."""
        if len(self.nodes) >= MAX_NODES:
            raise TooLarge
        ids: list[int] = []
        for t in inputs:
            if t.node not in ids:
                ids.append(t.node)
        attrs: dict[str, Any] = {"uncertain": True} if self.uncertain or (layer and layer.uncertain) else {}
        if layer is not None and layer.init_at is not None:
            attrs["init_at"] = list(layer.init_at)
        node = Node(
            id=len(self.nodes),
            kind=kind,
            op=op,
            inputs=tuple(ids),
            path=layer.path if layer else "",
            line=(layer.line if layer else line) or None,
            fan_in=layer.fan_in if layer else None,
            fan_out=layer.fan_out if layer else None,
            init=layer.init if layer else "default",
            attrs=attrs,
        )
        self.nodes.append(node)
        return Tensor(node.id)

    def graph(self) -> LayerGraph:
        """What was read so far."""
        return LayerGraph(tuple(self.nodes), "static", self.complete)

    def ignorant(self) -> Value:
        """Something could not be followed: the graph is not complete from here on."""
        self.complete = False
        return UNKNOWN

    # -- statements ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """One step of work against the budget."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooLarge

    def run(self, body: Sequence[ast.stmt], env: Env) -> None:
        """Statements in order."""
        for node in body:
            self.statement(node, env)

    def statement(self, node: ast.stmt, env: Env) -> None:
        """One statement."""
        self.tick()
        self.path, self.here = env.module.path, node.lineno
        kind = type(node)
        method = self._handlers.get(kind)
        if method is None:
            method = self._handlers[kind] = getattr(self, "_s_" + kind.__name__, _nothing)
        method(node, env)

    def _s_Expr(self, node: ast.Expr, env: Env) -> None:
        self.eval(node.value, env)

    def _s_Assign(self, node: ast.Assign, env: Env) -> None:
        value = self.eval(node.value, env)
        for target in node.targets:
            self.assign(target, value, env)

    def _s_AnnAssign(self, node: ast.AnnAssign, env: Env) -> None:
        if node.value is not None:
            self.assign(node.target, self.eval(node.value, env), env)

    def _s_AugAssign(self, node: ast.AugAssign, env: Env) -> None:
        old = self.eval(node.target, env)
        new = self.eval(node.value, env)
        if isinstance(old, list) and isinstance(node.op, ast.Add):
            self.table.containers.list_extend(old, new)
            return
        if isinstance(old, Container) and isinstance(new, (list, Container)):
            self.table.containers.extend_container(old, new)
            return
        self.assign(node.target, self.binary(node.op, old, new, node.lineno), env)

    def _s_Return(self, node: ast.Return, env: Env) -> None:
        raise Return(self.eval(node.value, env) if node.value is not None else None)

    def _s_Raise(self, node: ast.Raise, env: Env) -> None:
        raise _Raise

    def _s_Break(self, node: ast.Break, env: Env) -> None:
        raise _Break

    def _s_Continue(self, node: ast.Continue, env: Env) -> None:
        raise _Continue

    def _s_FunctionDef(self, node: ast.FunctionDef, env: Env) -> None:
        env.vars[node.name] = FuncValue(node, env.module, env)

    _s_AsyncFunctionDef = _s_FunctionDef

    def _s_ClassDef(self, node: ast.ClassDef, env: Env) -> None:
        env.vars[node.name] = ClassValue(node, env.module, env)

    def _s_Import(self, node: ast.Import, env: Env) -> None:
        for alias in node.names:
            env.vars[alias.asname or alias.name.split(".")[0]] = Ref(
                alias.name if alias.asname else alias.name.split(".")[0]
            )

    def _s_ImportFrom(self, node: ast.ImportFrom, env: Env) -> None:
        for alias in node.names:
            env.vars[alias.asname or alias.name] = env.module._imported(node, alias.name)

    def _s_With(self, node: ast.With, env: Env) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self.assign(item.optional_vars, UNKNOWN, env)
        self.run(node.body, env)

    _s_AsyncWith = _s_With

    def _s_Try(self, node: ast.Try, env: Env) -> None:
        try:
            self.run(node.body, env)
        except _Raise:
            if node.handlers:
                self.run(node.handlers[0].body, env)
        else:
            self.run(node.orelse, env)
        self.run(node.finalbody, env)

    def _s_Assert(self, node: ast.Assert, env: Env) -> None:
        return

    def _s_Match(self, node: ast.Match, env: Env) -> None:
        subject = self.eval(node.subject, env)
        for case in node.cases:
            fits = _matches(case.pattern, subject)
            if fits:
                self.run(case.body, env)
                return
            if fits is None:
                self.complete = False

    def _s_If(self, node: ast.If, env: Env) -> None:
        test = self.truth(self.eval(node.test, env))
        if test is not None:
            self.run(node.body if test else node.orelse, env)
            return
        # Not known: read the branch that goes on, and say that the reading is not complete.
        self.complete = False
        body, other = node.body, node.orelse
        if _leaves(body) and not (other and _leaves(other)):
            body, other = other, []
        self.uncertain += 1
        self.maybe += 1
        try:
            self.run(body, env)
        finally:
            self.uncertain -= 1
            self.maybe -= 1

    def _s_For(self, node: ast.For, env: Env) -> None:
        items = self.iterate(self.eval(node.iter, env))
        if items is None:
            self._unknown_loop(node, env)
            return
        try:
            for item in items[:MAX_UNROLL]:
                self.assign(node.target, item, env)
                try:
                    self.run(node.body, env)
                except _Continue:
                    continue
        except _Break:
            return
        self.run(node.orelse, env)

    _s_AsyncFor = _s_For

    def _s_While(self, node: ast.While, env: Env) -> None:
        for _ in range(MAX_UNROLL):
            test = self.truth(self.eval(node.test, env))
            if test is False:
                return
            if test is None:
                self._unknown_loop(node, env)
                return
            try:
                self.run(node.body, env)
            except _Continue:
                continue
            except _Break:
                return

    def _unknown_loop(self, node: ast.For | ast.While, env: Env) -> None:
        """Read the body twice, as something of unknown length: enough to see how its ends meet."""
        self.complete = False
        self.uncertain += 1
        try:
            for _ in range(2):
                if isinstance(node, ast.For):
                    self.assign(node.target, UNKNOWN, env)
                try:
                    self.run(node.body, env)
                except _Continue:
                    continue
        except _Break:
            pass
        finally:
            self.uncertain -= 1

    def assign(self, target: ast.expr, value: Value, env: Env) -> None:
        """Bind ``target``."""
        if isinstance(target, ast.Name):
            env.vars[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target.elts, value, env)
        elif isinstance(target, ast.Attribute):
            place = (self.path, self.here)
            self.table.objects.set_attribute(self.eval(target.value, env), target.attr, value, place)
        elif isinstance(target, ast.Subscript):
            self.table.containers.set_item(self.eval(target.value, env), self.eval(target.slice, env), value)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, value, env)

    def _unpack(self, targets: Sequence[ast.expr], value: Value, env: Env) -> None:
        if isinstance(value, (tuple, list)) and len(value) >= len(targets) - 1:
            star = next((i for i, t in enumerate(targets) if isinstance(t, ast.Starred)), None)
            values = list(value)
            if star is not None:
                after = len(targets) - star - 1
                middle = values[star : len(values) - after]
                values = [*values[:star], middle, *values[len(values) - after :]]
            if len(values) == len(targets):
                for t, v in zip(targets, values, strict=True):
                    self.assign(t, v, env)
                return
        for t in targets:
            self.assign(t, value if isinstance(value, Tensor) else UNKNOWN, env)

    # -- expressions ---------------------------------------------------------------------------------

    def eval(self, node: ast.expr, env: Env) -> Value:
        """The value of an expression."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooLarge
        kind = type(node)
        method = self._handlers.get(kind)
        if method is None:
            method = self._handlers[kind] = getattr(self, "_e_" + kind.__name__, _unknown)
        return method(node, env)

    def _e_Constant(self, node: ast.Constant, env: Env) -> Value:
        return node.value

    def _e_Name(self, node: ast.Name, env: Env) -> Value:
        return env.lookup(node.id)

    def _e_NamedExpr(self, node: ast.NamedExpr, env: Env) -> Value:
        value = self.eval(node.value, env)
        self.assign(node.target, value, env)
        return value

    def _e_Tuple(self, node: ast.Tuple, env: Env) -> Value:
        return tuple(self._elements(node.elts, env))

    def _e_List(self, node: ast.List, env: Env) -> Value:
        return self._elements(node.elts, env)

    def _elements(self, elts: Sequence[ast.expr], env: Env) -> list[Value]:
        out: list[Value] = []
        for e in elts:
            if isinstance(e, ast.Starred):
                inner = self.eval(e.value, env)
                items = self.iterate(inner)
                if items is None:
                    self.complete = False
                    out.append(UNKNOWN)
                    out = OpenList(out)
                else:
                    out = OpenList([*out, *items]) if isinstance(inner, OpenList) else type(out)([*out, *items])
            else:
                out.append(self.eval(e, env))
        return out

    def _e_Dict(self, node: ast.Dict, env: Env) -> Value:
        out: dict[Any, Value] = {}
        for k, v in zip(node.keys, node.values, strict=True):
            value = self.eval(v, env)
            if k is None:
                if isinstance(value, dict):
                    out.update(value)
                continue
            key = self.eval(k, env)
            if isinstance(key, (str, int, float, bool, tuple)):
                out[key] = value
        return out

    def _e_Attribute(self, node: ast.Attribute, env: Env) -> Value:
        return self.attribute(self.eval(node.value, env), node.attr, node.lineno)

    def attribute(self, owner: Value, name: str, line: int) -> Value:
        """``owner.name``."""
        if name == "__class__":
            return self.class_of(owner)
        if name in ("__name__", "__qualname__") and isinstance(owner, (Ref, ClassValue)):
            return owner.node.name if isinstance(owner, ClassValue) else owner.name.rpartition(".")[2]
        if isinstance(owner, Ref):
            return Ref(f"{owner.name}.{name}")
        if isinstance(owner, ModuleRef):
            return owner.attribute(name)
        if isinstance(owner, (Instance, Super, ClassValue)):
            return self.table.objects.object_attribute(owner, name)
        if isinstance(owner, Layer):
            if name in ("weight", "bias") and owner.kind in (WEIGHT, NORM):
                return Weight(owner, name)
            if name in owner.attrs:
                return owner.attrs[name]
            return Bound(owner, name)
        if isinstance(owner, Weight):
            return owner if name == "data" else Bound(owner, name)
        if isinstance(owner, Tensor):
            if name in ("shape", "device", "dtype", "ndim", "requires_grad", "is_cuda", "names"):
                return UNKNOWN
            if name in ("T", "mT", "real", "data", "H"):
                return self.emit(TRANSPARENT, name, [owner], line=line)
            return Bound(owner, name)
        if isinstance(owner, (list, tuple, dict, str, Container)):
            return Bound(owner, name)
        return UNKNOWN

    def class_of(self, owner: Value) -> Value:
        """``type(owner)``."""
        if isinstance(owner, (Layer, Container)):
            return Ref(f"torch.nn.{owner.cls}")
        return owner.cls if isinstance(owner, Instance) else UNKNOWN

    def _e_Subscript(self, node: ast.Subscript, env: Env) -> Value:
        owner = self.eval(node.value, env)
        if isinstance(owner, Tensor):
            return self.emit(TRANSPARENT, "getitem", [owner], line=node.lineno)
        index = self.eval(node.slice, env)
        return self.table.containers.get_item(owner, index)

    def _e_Slice(self, node: ast.Slice, env: Env) -> Value:
        parts = [None if p is None else self.eval(p, env) for p in (node.lower, node.upper, node.step)]
        if all(p is None or (isinstance(p, int) and not isinstance(p, bool)) for p in parts):
            return slice(*parts)
        return UNKNOWN

    def _e_JoinedStr(self, node: ast.JoinedStr, env: Env) -> Value:
        out = []
        for part in node.values:
            value = self.eval(part.value, env) if isinstance(part, ast.FormattedValue) else self.eval(part, env)
            if not isinstance(value, _PLAIN):
                return UNKNOWN
            out.append(str(value))
        return "".join(out)

    def _e_Lambda(self, node: ast.Lambda, env: Env) -> Value:
        return FuncValue(node, env.module, env)

    def _e_IfExp(self, node: ast.IfExp, env: Env) -> Value:
        test = self.truth(self.eval(node.test, env))
        if test is None:
            self.complete = False
            value = self.eval(node.body, env)
            return value if value is not None and value is not UNKNOWN else self.eval(node.orelse, env)
        return self.eval(node.body if test else node.orelse, env)

    def _e_BoolOp(self, node: ast.BoolOp, env: Env) -> Value:
        value: Value = UNKNOWN
        for part in node.values:
            value = self.eval(part, env)
            test = self.truth(value)
            if test is None:
                return UNKNOWN
            if test is isinstance(node.op, ast.Or):
                return value
        return value

    def _e_UnaryOp(self, node: ast.UnaryOp, env: Env) -> Value:
        value = self.eval(node.operand, env)
        if isinstance(node.op, ast.Not):
            test = self.truth(value)
            return UNKNOWN if test is None else not test
        if isinstance(value, Tensor):
            return self.emit(TRANSPARENT, "neg", [value], line=node.lineno)
        if isinstance(value, (int, float)) and isinstance(node.op, ast.USub):
            return -value
        return value if isinstance(node.op, ast.UAdd) else UNKNOWN

    def _e_BinOp(self, node: ast.BinOp, env: Env) -> Value:
        return self.binary(node.op, self.eval(node.left, env), self.eval(node.right, env), node.lineno)

    def binary(self, op: ast.operator, left: Value, right: Value, line: int) -> Value:
        """``left op right``, on numbers, lists, strings or tensors."""
        if isinstance(left, Tensor) or isinstance(right, Tensor):
            return self._tensor_binary(op, left, right, line)
        if isinstance(left, list) and isinstance(right, list) and isinstance(op, ast.Add):
            joined = [*left, *right]
            return OpenList(joined) if isinstance(left, OpenList) or isinstance(right, OpenList) else joined
        if isinstance(op, ast.Mult) and isinstance(left, (list, tuple)) != isinstance(right, (list, tuple)):
            items, times = (left, right) if isinstance(left, (list, tuple)) else (right, left)
            if not isinstance(times, int):
                return OpenList(items)
            return type(items)(list(items) * min(times, MAX_UNROLL))
        function = _BINARY.get(type(op))
        if isinstance(op, ast.Pow) and isinstance(left, (int, float)) and isinstance(right, (int, float)):
            function = pow if abs(right) <= 64 and abs(left) < 1e6 else None
        if function is None or left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        if isinstance(left, str) and isinstance(op, ast.Mod) and any(not isinstance(v, _PLAIN) for v in _flat(right)):
            return UNKNOWN
        if isinstance(left, str) and isinstance(op, ast.Mult):
            return UNKNOWN
        if not isinstance(left, (int, float, str, tuple, dict)) or not isinstance(
            right, (int, float, str, tuple, dict)
        ):
            return UNKNOWN
        try:
            return function(left, right)
        except (TypeError, ValueError, ArithmeticError):
            return UNKNOWN

    def _tensor_binary(self, op: ast.operator, left: Value, right: Value, line: int) -> Value:
        live = [v for v in (left, right) if isinstance(v, Tensor)]
        other = right if live[0] is left else left
        if len(live) == 2:
            return self.emit(JOIN, type(op).__name__.lower(), live, line=line)
        if isinstance(op, (ast.MatMult, ast.Pow)):
            if isinstance(op, ast.MatMult) and isinstance(other, Weight):
                return self.emit(WEIGHT, "matmul", live, other.layer, line)
            self.complete = False
            return self.emit("unknown", type(op).__name__.lower(), live, line=line)
        return self.emit(TRANSPARENT, type(op).__name__.lower(), live, line=line)

    def _e_Compare(self, node: ast.Compare, env: Env) -> Value:
        left = self.eval(node.left, env)
        result: Value = True
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.eval(comparator, env)
            result = _compare(op, left, right)
            if result is not True:
                return result
            left = right
        return result

    def _e_ListComp(self, node: ast.ListComp, env: Env) -> Value:
        out: list[Value] = []
        if not self._comprehend(node.generators, 0, env, lambda e: out.append(self.eval(node.elt, e))):
            return OpenList(out)
        return out

    _e_GeneratorExp = _e_ListComp
    _e_SetComp = _e_ListComp

    def _e_DictComp(self, node: ast.DictComp, env: Env) -> Value:
        out: dict[Any, Value] = {}

        def one(e: Env) -> None:
            key = self.eval(node.key, e)
            value = self.eval(node.value, e)
            if isinstance(key, (str, int)):
                out[key] = value

        self._comprehend(node.generators, 0, env, one)
        return out

    def _comprehend(
        self, generators: Sequence[ast.comprehension], i: int, env: Env, one: Callable[[Env], None]
    ) -> bool:
        """Run a comprehension; False where its length is not known (the body was read twice)."""
        if i == len(generators):
            one(env)
            return True
        g = generators[i]
        items = self.iterate(self.eval(g.iter, env))
        known = items is not None
        if not known:
            self.complete = False
            self.uncertain += 1
        inner = Env(env.module, env)
        for item in (items or [])[:MAX_UNROLL] if known else [UNKNOWN, UNKNOWN]:
            self.assign(g.target, item, inner)
            tests = [self.truth(self.eval(c, inner)) for c in g.ifs]
            if False in tests:
                continue
            known = self._comprehend(generators, i + 1, inner, one) and known
        if items is None:
            self.uncertain -= 1
        return known

    def _e_Call(self, node: ast.Call, env: Env) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return self.table.objects.super_of(env)
        func = self.eval(node.func, env)
        args = self._elements(node.args, env)
        kwargs: dict[str, Value] = {}
        for k in node.keywords:
            value = self.eval(k.value, env)
            if k.arg is not None:
                kwargs[k.arg] = value
            elif isinstance(value, dict):
                kwargs.update({key: v for key, v in value.items() if isinstance(key, str)})
        return self.table.call(func, args, kwargs, node, env)

    # -- calls of project code -----------------------------------------------------------------------

    def call_function(self, func: FuncValue, args: Sequence[Value], kwargs: dict[str, Value]) -> Value:
        """Follow a call of a function or method of the project."""
        if self.depth >= MAX_DEPTH:
            raise TooLarge
        env = Env(func.module, func.env)
        values = [func.bound, *args] if func.bound is not None else list(args)
        self.bind(func, values, kwargs, env)
        if isinstance(func.node, ast.Lambda):
            return self.eval(func.node.body, env)
        if func.owner is not None:
            env.vars["__class__"] = func.owner
        self.depth += 1
        try:
            self.run(func.node.body, env)
        except Return as r:
            return r.value
        except (_Break, _Continue):
            return None
        finally:
            self.depth -= 1
        return None

    def bind(self, func: FuncValue, args: Sequence[Value], kwargs: dict[str, Value], env: Env) -> None:
        """Bind parameters: arguments, then defaults, then UNKNOWN.

        A default also stands in for an argument that is given but not known: it is the value that its author thought
        typical, and the built model, not this reading, decides.
        """
        spec = func.node.args
        names = [a.arg for a in (*spec.posonlyargs, *spec.args)]
        rest = dict(kwargs)
        outer = func.env or Env(func.module)
        for name, default in zip(names[len(names) - len(spec.defaults) :], spec.defaults, strict=True):
            if name not in rest:
                env.vars[name] = self.eval(default, outer)
        for kwonly, kw_default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            env.vars[kwonly.arg] = UNKNOWN if kw_default is None else self.eval(kw_default, outer)
        for name in names:
            env.vars.setdefault(name, UNKNOWN)
        for name, value in zip(names, args, strict=False):
            if value is not UNKNOWN or name not in env.vars:
                env.vars[name] = value
        known = {*names, *(a.arg for a in spec.kwonlyargs)}
        for name in list(rest):
            if name in known:
                value = rest.pop(name)
                if value is not UNKNOWN or name not in env.vars:
                    env.vars[name] = value
        for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs):
            if a.annotation is not None and env.vars[a.arg] is UNKNOWN:
                env.vars[a.arg] = self.from_annotation(a.annotation, outer)
        if spec.vararg is not None:
            env.vars[spec.vararg.arg] = tuple(args[len(names) :])
        if spec.kwarg is not None:
            env.vars[spec.kwarg.arg] = rest

    def from_annotation(self, annotation: ast.expr, env: Env) -> Value:
        """A configuration object of the project that a parameter is annotated with, made with its defaults."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            if not annotation.value.isidentifier():
                return UNKNOWN
            value = env.lookup(annotation.value)
        elif isinstance(annotation, (ast.Name, ast.Attribute)):
            value = self.eval(annotation, env)
        else:
            return UNKNOWN
        if isinstance(value, ClassValue) and not self.table.objects.is_module(value) and self.depth < MAX_DEPTH // 2:
            return self.table.objects.construct(value, [], {})
        return UNKNOWN

    # -- what values are -----------------------------------------------------------------------------

    def truth(self, value: Value) -> bool | None:
        """``bool(value)``, or None where the text does not tell."""
        if value is UNKNOWN or isinstance(value, Tensor):
            return None
        if isinstance(value, OpenList):
            return True
        if isinstance(value, (*_PLAIN, list, tuple, dict)):
            return bool(value)
        if isinstance(value, Container):
            return bool(value.items)
        return True

    def iterate(self, value: Value) -> list[Value] | None:
        """The items of an iterable, or None where they are not known."""
        if isinstance(value, OpenList):
            # Of unknown length, but what is known of it is worth following.
            self.complete = False
            return list(value)
        if isinstance(value, (list, tuple)):
            return list(value)
        if isinstance(value, range):
            return list(value[:MAX_UNROLL])
        if isinstance(value, dict):
            return list(value)
        if isinstance(value, str):
            return list(value)
        if isinstance(value, Container):
            if value.open:
                self.complete = False
            return list(value.names) if value.cls == "ModuleDict" else list(value.items)
        if isinstance(value, Instance):
            found = self.table.objects.find_method(value.cls, "__iter__")
            if found is None and self.table.objects.find_method(value.cls, "__getitem__") is None:
                return None
        return None


def _nothing(node: ast.stmt, env: Env) -> None:
    """A statement that changes nothing the reader follows."""


def _unknown(node: ast.expr, env: Env) -> Value:
    return UNKNOWN


def tensors(value: Value) -> Iterator[Tensor]:
    """All live tensors inside a value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


def _leaves(body: Sequence[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], (ast.Raise, ast.Return, ast.Continue, ast.Break))


def _same_class(left: Value, right: Value) -> bool | None:
    """Whether two classes are one; None where one of the two is none."""
    if isinstance(left, Ref) and isinstance(right, Ref):
        return left.name == right.name
    if isinstance(left, ClassValue) and isinstance(right, ClassValue):
        return left.node is right.node
    return False if all(isinstance(v, (Ref, ClassValue)) for v in (left, right)) else None


def _compare(op: ast.cmpop, left: Value, right: Value) -> Value:
    if isinstance(op, (ast.Is, ast.IsNot)):
        if left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        plain = isinstance(left, _PLAIN) and isinstance(right, _PLAIN) and left == right
        same = left is right or bool(plain or _same_class(left, right))
        return same if isinstance(op, ast.Is) else not same
    if isinstance(op, (ast.Eq, ast.NotEq)) and (one := _same_class(left, right)) is not None:
        return one == isinstance(op, ast.Eq)  # `type(m) == nn.Linear`
    if isinstance(op, (ast.In, ast.NotIn)) and isinstance(right, (list, tuple)) and right:
        classes = [_same_class(left, v) for v in right]
        if None not in classes:
            return any(classes) == isinstance(op, ast.In)
    if isinstance(op, (ast.In, ast.NotIn)):
        if isinstance(right, (list, tuple, dict, str)) and isinstance(left, _PLAIN):
            if isinstance(right, str) and not isinstance(left, str):
                return UNKNOWN
            if not isinstance(right, (str, dict)) and any(not isinstance(v, _PLAIN) for v in right):
                return UNKNOWN
            return (left in right) == isinstance(op, ast.In)
        return UNKNOWN
    function = _COMPARE.get(type(op))
    comparable = (*_PLAIN, tuple)
    if function is None or not isinstance(left, comparable) or not isinstance(right, comparable):
        return UNKNOWN
    if any(v is UNKNOWN for v in (*_flat(left), *_flat(right))):
        return UNKNOWN
    try:
        return bool(function(left, right))
    except TypeError:
        return UNKNOWN


def _flat(value: Value) -> tuple[Value, ...]:
    return value if isinstance(value, tuple) else (value,)


def _matches(pattern: ast.pattern, subject: Value) -> bool | None:
    if isinstance(pattern, ast.MatchAs) and pattern.pattern is None:
        return True
    if isinstance(pattern, ast.MatchValue) and isinstance(pattern.value, ast.Constant) and isinstance(subject, _PLAIN):
        return bool(pattern.value.value == subject)
    if isinstance(pattern, ast.MatchOr):
        tests = [_matches(p, subject) for p in pattern.patterns]
        return True if True in tests else None if None in tests else False
    return None
