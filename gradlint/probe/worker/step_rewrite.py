"""Makes a sliced module survive what it does not know: a rewrite of its syntax tree, lines kept.

* A statement that raises binds its targets to ghosts and the run goes on (``_gl_failed`` decides).
* Loops go through a limiter (``_gl_loop``, ``_gl_while``), tests through ``_gl_test``, ``not`` and
  ``is None`` through helpers that know ghosts.
* A name with a role (model, optimizer, scaler) that is bound to a ghost gets a stand-in (``_gl_cast``).

The helpers are put into the module's namespace by the runner. Names have one leading underscore and no more:
two would be mangled inside classes.
"""

from __future__ import annotations

import ast
import copy
from typing import Dict, FrozenSet, List, Optional, Sequence, Set, Tuple, Union

from step_expressions import Expressions, clamp_of, window_counters
from step_nodes import at, call, dotted, guard, load, names_of, store, string

RERAISED = frozenset({"StopIteration", "KeyError", "IndexError", "AttributeError", "AssertionError", "ValueError"})
"""Exceptions that a user's own handler around a statement is meant to see."""

_RAISED_BY_PROTOCOL = {
    "__next__": frozenset({"StopIteration"}),
    "next": frozenset({"StopIteration"}),
    "__getattr__": frozenset({"AttributeError"}),
    "__getitem__": frozenset({"IndexError", "KeyError", "StopIteration"}),
}

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_Bindable = (ast.Name, ast.Attribute, ast.Tuple, ast.List, ast.Starred)


def rewrite(
    tree: ast.Module,
    roles: Dict[str, str],
    is_main: bool,
    capture: str = "",
    iterators: FrozenSet[Tuple[int, str]] = frozenset(),
) -> ast.Module:
    """``tree``, changed in place so that it runs on ghosts.

    ``is_main``: whether ``__name__`` is ``"__main__"``. ``capture``: the qualified name of a nested function to
    report (``_gl_defined``) when it is defined. ``iterators``: lines with the paths bound there that are watched.
    """
    writer = _Writer(roles, is_main, capture, iterators, window_counters(tree))
    head = [s for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    body = [s for s in tree.body if s not in head]
    tree.body = [*head, *writer.block(body, frozenset())]
    return tree


class _Watching(ast.Call):
    """A call of ``_gl_iterator``."""


def _watched(value: ast.expr, line: int, path: str) -> ast.expr:
    if not isinstance(value, ast.Call) or value.lineno != line:
        return value
    return at(_Watching(load("_gl_iterator"), [value, string(path)], []), value)


class _Writer:
    """Rewrites statement lists; ``seen`` is the set of exceptions the user's code wants to see."""

    def __init__(
        self,
        roles: Dict[str, str],
        is_main: bool,
        capture: str,
        iterators: FrozenSet[Tuple[int, str]],
        counters: FrozenSet[str],
    ) -> None:
        self.roles = roles
        self.iterators = iterators
        self.capture = [part for part in capture.split(".") if part != "<locals>"]
        self.path: List[str] = []
        self.expressions = Expressions(is_main, counters)

    def block(self, statements: Sequence[ast.stmt], seen: FrozenSet[str]) -> List[ast.stmt]:
        """The rewritten statements; never empty."""
        out: List[ast.stmt] = []
        for statement in statements:
            new = self.statement(statement, seen)
            for node in new:
                at(node, statement)
            out.extend(new)
        return out or [ast.Pass()]

    def statement(self, node: ast.stmt, seen: FrozenSet[str]) -> List[ast.stmt]:
        """What one statement becomes."""
        if isinstance(node, _Function):
            return self._function(node, seen)
        if isinstance(node, ast.ClassDef):
            self.path.append(node.name)
            node.body = self._docstring_first(node.body, frozenset())
            node.keywords = [k for k in node.keywords if k.arg == "metaclass"]  # an unknown base takes none
            self.path.pop()
            return [self._guarded(node, [node.name], [], seen, node)]
        if isinstance(node, ast.If):
            return self._if(node, seen)
        if isinstance(node, ast.For):
            return self._for(node, seen)
        if isinstance(node, ast.While):
            return self._while(node, seen)
        if isinstance(node, ast.With):
            return self._with(node, seen)
        if isinstance(node, (ast.AsyncFor, ast.AsyncWith)):
            node.body = self.block(node.body, seen)
            return [node]
        if isinstance(node, ast.Try):
            return self._try(node, seen)
        if hasattr(node, "cases"):
            for case in node.cases:
                case.body = self.block(case.body, seen)
            return [node]
        if hasattr(node, "handlers"):  # except*
            return [node]
        return self._simple(node, seen)

    def _docstring_first(self, body: List[ast.stmt], seen: FrozenSet[str]) -> List[ast.stmt]:
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            return [body[0], *(self.block(body[1:], seen) if body[1:] else [])]
        return self.block(body, seen)

    def _function(self, node: Union[ast.FunctionDef, ast.AsyncFunctionDef], seen: FrozenSet[str]) -> List[ast.stmt]:
        inner = _RAISED_BY_PROTOCOL.get(node.name, frozenset())
        self.path.append(node.name)
        node.body = self._docstring_first(node.body, inner)
        is_wanted = self.path == self.capture
        self.path.pop()
        _drop_annotations(node)
        out: List[ast.stmt] = [node]
        if node.decorator_list or node.args.defaults or any(node.args.kw_defaults):
            out = [self._guarded(node, [node.name], [], seen, node)]
        if is_wanted:
            out.append(ast.Expr(value=call("_gl_defined", load(node.name))))
        return out

    def _simple(self, node: ast.stmt, seen: FrozenSet[str]) -> List[ast.stmt]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._import(node, seen)
        if isinstance(node, (ast.Global, ast.Nonlocal, ast.Pass, ast.Break, ast.Continue)):
            return [node]
        if isinstance(node, ast.AnnAssign):
            return self._annotated(node, seen)
        names = self._loads(node)
        counter = self._counter(node)
        self._watch_arguments(node)
        plain = self.expressions.visit(node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and len(node.targets) == 1:
            path = dotted(node.targets[0])
            if path is not None and path not in self.roles:
                node.value = at(call("_gl_named", node.value, string(path)), node.value)
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            node.value = _unpacking(node.targets[0], node.value)
        owner = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(owner, ast.Attribute) and owner.attr in ("grad", "_grad"):
            node.value = at(call("_gl_gradient", _read(owner.value), node.value), node.value)
        if isinstance(node, ast.Assign) and isinstance(owner, ast.Attribute) and owner.attr == "requires_grad":
            node.value = at(call("_gl_trains", node.value), node.value)
        if isinstance(node, ast.Raise):
            return [plain]
        if isinstance(node, ast.Return):
            fallback = ast.Return(value=call("_gl_failed", string("return"), names_of(names), names_of(sorted(seen))))
            return [guard(plain, [fallback])]
        targets: List[ast.expr] = list(node.targets) if isinstance(node, ast.Assign) else []
        result: List[ast.stmt] = [*counter, self._guarded(plain, targets, names, seen, node)]
        for target in targets:
            result.extend(self._casts(target))
            result.extend(self._watches(target, node))
        if _touches_grad(node):
            result.append(ast.Expr(value=call("_gl_grads_changed")))
        return result

    def _annotated(self, node: ast.AnnAssign, seen: FrozenSet[str]) -> List[ast.stmt]:
        if node.value is None:
            # dataclass fields keep their annotation; as text it cannot raise
            node.annotation = at(string("object"), node)
            return [node]
        names = self._loads(node.value)
        node.annotation = at(string("object"), node)
        node.value = self.expressions.visit(node.value)
        bound = self._guarded(node, [node.target], names, seen, node)
        return [bound, *self._casts(node.target), *self._watches(node.target, node)]

    def _import(self, node: Union[ast.Import, ast.ImportFrom], seen: FrozenSet[str]) -> List[ast.stmt]:
        out: List[ast.stmt] = []
        for alias in node.names:
            one: ast.stmt
            if isinstance(node, ast.Import):
                one = _plain_import(alias)
            else:
                one = ast.ImportFrom(module=node.module, names=[alias], level=node.level)
            if alias.name == "*":
                out.append(guard(one, [ast.Expr(value=call("_gl_failed", string("*"), names_of([]), names_of([])))]))
                continue
            bound = alias.asname or alias.name.split(".")[0]
            out.append(self._guarded(one, [bound], [], seen - {"ImportError"}, node))
        return out

    def _guarded(
        self,
        node: ast.stmt,
        targets: Sequence[Union[str, ast.expr]],
        names: Sequence[str],
        seen: FrozenSet[str],
        where: ast.stmt,
    ) -> ast.stmt:
        """``node`` in a ``try``: what it would bind is bound to a ghost when it raises."""
        text = ", ".join(t if isinstance(t, str) else (dotted(t) or "value") for t in targets) or "statement"
        failed = call("_gl_failed", string(text), names_of(names), names_of(sorted(seen)))
        handler: List[ast.stmt] = [ast.Assign(targets=[store("_gl_value")], value=failed)]
        for target in targets:
            new = store(target) if isinstance(target, str) else _as_target(target)
            if new is None:
                continue
            bind = ast.Assign(targets=[new], value=load("_gl_value"))
            handler.append(bind if isinstance(new, ast.Name) else guard(bind, [ast.Pass()]))
        return at(guard(node, handler), where)

    def _casts(self, target: ast.expr) -> List[ast.stmt]:
        """Stand-ins for the names with a role that ``target`` binds."""
        if isinstance(target, (ast.Tuple, ast.List)):
            return [s for element in target.elts for s in self._casts(element)]
        path = dotted(target)
        if path is None or path not in self.roles or isinstance(target, ast.Subscript):
            return []
        value = call("_gl_cast", _read(target), string(path))
        return [guard(ast.Assign(targets=[copy.deepcopy(target)], value=value), [ast.Pass()])]

    def _counter(self, node: ast.stmt) -> List[ast.stmt]:
        """``n += 1``: a counter of which nothing is known began at 0."""
        if not (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add)):
            return []
        if not (isinstance(node.value, ast.Constant) and type(node.value.value) is int):
            return []
        if not isinstance(node.target, (ast.Name, ast.Attribute)):
            return []
        begun = ast.Assign(targets=[copy.deepcopy(node.target)], value=call("_gl_counter", _read(node.target)))
        return [guard(begun, [ast.Pass()])]

    def _watches(self, target: ast.expr, node: ast.stmt) -> List[ast.stmt]:
        """Watch the iterators that a statement binds, as far as the request asks for it."""
        if isinstance(target, (ast.Tuple, ast.List)):
            return [s for element in target.elts for s in self._watches(element, node)]
        path = dotted(target)
        if path is None or (node.lineno, path) not in self.iterators:
            return []
        watched = call("_gl_iterator", _read(target), string(path))
        return [guard(ast.Assign(targets=[copy.deepcopy(target)], value=watched), [ast.Pass()])]

    def _watch_arguments(self, node: ast.stmt) -> None:
        """Watch the iterators that a call is given where they are made: ``fit(net, net.parameters())``."""
        for line, path in self.iterators:
            if not node.lineno <= line <= (node.end_lineno or node.lineno):
                continue
            if isinstance(node, ast.Assign) and path in map(dotted, node.targets):
                continue
            for made in [n for n in ast.walk(node) if isinstance(n, ast.Call)]:  # outer ones first
                made.args = [_watched(a, line, path) for a in made.args]
                for keyword in made.keywords:
                    keyword.value = _watched(keyword.value, line, path)
                if any(isinstance(a, _Watching) for a in (*made.args, *(k.value for k in made.keywords))):
                    break

    def _loads(self, node: ast.AST) -> List[str]:
        """Names and paths of models read in ``node``, in order, without repetition."""
        found: Dict[str, None] = {}
        for child in ast.walk(node):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load):
                found[child.id] = None
            elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
                path = dotted(child)
                if path is not None and "[" not in path and self.roles.get(path) == "model":
                    found[path] = None
        return list(found)

    def _if(self, node: ast.If, seen: FrozenSet[str]) -> List[ast.stmt]:
        before = self._evaluated("_gl_test_value", node.test, seen, test=True)
        node.test = load("_gl_test_value")
        node.body = self.block(node.body, seen)
        node.orelse = self.block(node.orelse, seen) if node.orelse else []
        return [before, node]

    def _for(self, node: ast.For, seen: FrozenSet[str]) -> List[ast.stmt]:
        clamped = clamp_of(node)
        if clamped is not None:
            return [guard(clamped, [ast.Pass()])]
        temporary = f"_gl_items_{node.lineno}_{node.col_offset}"
        before = self._evaluated(temporary, node.iter, seen)
        node.iter = call("_gl_loop", load(temporary), ast.Constant(value=node.lineno))
        casts = self._casts(node.target)
        node.body = [*casts, *self.block(node.body, seen)]
        node.orelse = self.block(node.orelse, seen) if node.orelse else []
        return [before, node]

    def _while(self, node: ast.While, seen: FrozenSet[str]) -> List[ast.stmt]:
        test = self._evaluated("_gl_test_value", node.test, seen, test=True)
        leave: List[ast.stmt] = [*(self.block(node.orelse, seen) if node.orelse else []), ast.Break()]
        stop = ast.If(test=ast.UnaryOp(op=ast.Not(), operand=load("_gl_test_value")), body=leave, orelse=[])
        body = [at(test, node), at(stop, node), *self.block(node.body, seen)]
        rounds = call("_gl_while", ast.Constant(value=node.lineno))
        return [ast.For(target=store("_gl_round"), iter=rounds, body=body, orelse=[])]

    def _with(self, node: ast.With, seen: FrozenSet[str]) -> List[ast.stmt]:
        """Each manager is evaluated by itself and entered through a wrapper that cannot fail."""
        body = self.block(node.body, seen)
        for number, item in reversed(list(enumerate(node.items))):
            temporary = f"_gl_with_{node.lineno}_{node.col_offset}_{number}"
            before = self._evaluated(temporary, item.context_expr, seen)
            casts = self._casts(item.optional_vars) if item.optional_vars is not None else []
            entered = ast.withitem(context_expr=call("_gl_manager", load(temporary)), optional_vars=item.optional_vars)
            body = [before, ast.With(items=[entered], body=[*casts, *body])]
            for new in body:
                at(new, node)
        return body

    def _try(self, node: ast.Try, seen: FrozenSet[str]) -> List[ast.stmt]:
        caught: Set[str] = set()
        for handler in node.handlers:
            caught |= _handled(handler) & RERAISED
            handler.body = self.block(handler.body, seen)
        node.body = self.block(node.body, seen | caught)
        node.orelse = self.block(node.orelse, seen) if node.orelse else []
        node.finalbody = self.block(node.finalbody, seen) if node.finalbody else []
        return [node]

    def _evaluated(self, name: str, value: ast.expr, seen: FrozenSet[str], test: bool = False) -> ast.stmt:
        """``name = value``, or a ghost when that raises; a test also becomes a plain bool."""
        names = self._loads(value)
        text = dotted(value) or "value"
        new = self.expressions.visit(value)
        failed: ast.expr = call("_gl_failed", string(text), names_of(names), names_of(sorted(seen)))
        if test:
            new, failed = call("_gl_test", new), call("_gl_test", failed)
        plain = at(ast.Assign(targets=[store(name)], value=new), value)
        handler = at(ast.Assign(targets=[store(name)], value=failed), value)
        return at(guard(plain, [handler]), value)


def _plain_import(alias: ast.alias) -> ast.stmt:
    """``import a.b as c`` as ``from a import b as c``: the import hook has to see what is bound."""
    parent, _, child = alias.name.rpartition(".")
    if alias.asname and parent:
        return ast.ImportFrom(module=parent, names=[ast.alias(name=child, asname=alias.asname)], level=0)
    return ast.Import(names=[alias])


def _handled(handler: ast.ExceptHandler) -> Set[str]:
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {(dotted(t) or "").rsplit(".", 1)[-1] for t in types if t is not None}


def _drop_annotations(node: Union[ast.FunctionDef, ast.AsyncFunctionDef]) -> None:
    """Annotations are evaluated at definition and may name what the slice does not hold."""
    node.returns = None
    arguments = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs, node.args.vararg, node.args.kwarg]
    for argument in arguments:
        if argument is not None and argument.annotation is not None:
            argument.annotation = at(string("object"), argument)


def _unpacking(target: ast.expr, value: ast.expr) -> ast.expr:
    """``a, b = value`` takes as many items as it needs."""
    if not isinstance(target, (ast.Tuple, ast.List)) or isinstance(value, (ast.Tuple, ast.List)):
        return value
    if any(isinstance(e, ast.Starred) for e in target.elts):
        return value
    return at(call("_gl_unpack", value, ast.Constant(value=len(target.elts))), value)


def _touches_grad(node: ast.stmt) -> bool:
    """Whether the statement writes a ``.grad``: ``p.grad = None``, ``p.grad.zero_()``, ``p.grad /= s``."""
    for child in ast.walk(node):
        if not (isinstance(child, ast.Attribute) and child.attr in ("grad", "_grad")):
            continue
        if isinstance(child.ctx, ast.Store) or isinstance(node, (ast.AugAssign, ast.Expr)):
            return True
    return False


def _read(target: ast.expr) -> ast.expr:
    """The expression that reads what ``target`` binds."""
    read = copy.deepcopy(target)
    read.ctx = ast.Load()  # type: ignore[attr-defined]
    return read


def _as_target(node: ast.expr) -> Optional[ast.expr]:
    return copy.deepcopy(node) if isinstance(node, _Bindable) else None
