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
from typing import Dict, FrozenSet, List, Optional, Sequence, Set, Tuple, TypeVar, Union

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


def rewrite(tree: ast.Module, roles: Dict[str, str], is_main: bool, capture: str = "") -> ast.Module:
    """A copy of ``tree`` that runs on ghosts.

    ``is_main``: whether ``__name__`` is ``"__main__"``. ``capture``: the qualified name of a nested function to
    report (``_gl_defined``) when it is defined.
    """
    tree = copy.deepcopy(tree)
    writer = _Writer(roles, is_main, capture)
    head = [s for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    body = [s for s in tree.body if s not in head]
    tree.body = [*head, *writer.block(body, frozenset())]
    return ast.fix_missing_locations(tree)


def dotted(node: ast.AST) -> Optional[str]:
    """``self.nets[i].model`` as ``self.nets[].model``, ``nets["a"]`` as ``nets['a']``.

    None for anything but names, attributes and items.
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    if isinstance(node, ast.Subscript):
        base = dotted(node.value)
        key = repr(node.slice.value) if isinstance(node.slice, ast.Constant) else ""
        return None if base is None else f"{base}[{key}]"
    return None


class _Writer:
    """Rewrites statement lists; ``seen`` is the set of exceptions the user's code wants to see."""

    def __init__(self, roles: Dict[str, str], is_main: bool, capture: str) -> None:
        self.roles = roles
        self.capture = [part for part in capture.split(".") if part != "<locals>"]
        self.path: List[str] = []
        self.expressions = _Expressions(is_main)

    def block(self, statements: Sequence[ast.stmt], seen: FrozenSet[str]) -> List[ast.stmt]:
        """The rewritten statements; never empty."""
        out: List[ast.stmt] = []
        for statement in statements:
            new = self.statement(statement, seen)
            for node in new:
                _at(node, statement)
            out.extend(new)
        return out or [ast.Pass()]

    def statement(self, node: ast.stmt, seen: FrozenSet[str]) -> List[ast.stmt]:
        """What one statement becomes."""
        if isinstance(node, _Function):
            return self._function(node, seen)
        if isinstance(node, ast.ClassDef):
            self.path.append(node.name)
            node.body = self._docstring_first(node.body, frozenset())
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
            out.append(ast.Expr(value=_call("_gl_defined", _load(node.name))))
        return out

    def _simple(self, node: ast.stmt, seen: FrozenSet[str]) -> List[ast.stmt]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._import(node, seen)
        if isinstance(node, (ast.Global, ast.Nonlocal, ast.Pass, ast.Break, ast.Continue)):
            return [node]
        if isinstance(node, ast.AnnAssign):
            return self._annotated(node, seen)
        names = self._loads(node)
        plain = self.expressions.visit(node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and len(node.targets) == 1:
            path = dotted(node.targets[0])
            if path is not None and path not in self.roles:
                node.value = _at(_call("_gl_named", node.value, _text(path)), node.value)
        if isinstance(node, ast.Raise):
            return [plain]
        if isinstance(node, ast.Return):
            fallback = ast.Return(value=_call("_gl_failed", _text("return"), _names(names), _names(sorted(seen))))
            return [_try(plain, [fallback])]
        targets: List[ast.expr] = list(node.targets) if isinstance(node, ast.Assign) else []
        result: List[ast.stmt] = [self._guarded(plain, targets, names, seen, node)]
        for target in targets:
            result.extend(self._casts(target))
        if _touches_grad(node):
            result.append(ast.Expr(value=_call("_gl_grads_changed")))
        return result

    def _annotated(self, node: ast.AnnAssign, seen: FrozenSet[str]) -> List[ast.stmt]:
        if node.value is None:
            # dataclass fields keep their annotation; as text it cannot raise
            node.annotation = ast.Constant(value="object")
            return [node]
        names = self._loads(node.value)
        node.annotation = ast.Constant(value="object")
        node.value = self.expressions.visit(node.value)
        return [self._guarded(node, [node.target], names, seen, node), *self._casts(node.target)]

    def _import(self, node: Union[ast.Import, ast.ImportFrom], seen: FrozenSet[str]) -> List[ast.stmt]:
        out: List[ast.stmt] = []
        for alias in node.names:
            one: ast.stmt
            if isinstance(node, ast.Import):
                one = _plain_import(alias)
            else:
                one = ast.ImportFrom(module=node.module, names=[alias], level=node.level)
            if alias.name == "*":
                out.append(_try(one, [ast.Expr(value=_call("_gl_failed", _text("*"), _names([]), _names([])))]))
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
        failed = _call("_gl_failed", _text(text), _names(names), _names(sorted(seen)))
        handler: List[ast.stmt] = [ast.Assign(targets=[_store("_gl_value")], value=failed)]
        for target in targets:
            new = _store(target) if isinstance(target, str) else _as_target(target)
            if new is None:
                continue
            bind = ast.Assign(targets=[new], value=_load("_gl_value"))
            handler.append(bind if isinstance(new, ast.Name) else _try(bind, [ast.Pass()]))
        return _at(_try(node, handler), where)

    def _casts(self, target: ast.expr) -> List[ast.stmt]:
        """Stand-ins for the names with a role that ``target`` binds."""
        if isinstance(target, (ast.Tuple, ast.List)):
            return [s for element in target.elts for s in self._casts(element)]
        path = dotted(target)
        if path is None or path not in self.roles or isinstance(target, ast.Subscript):
            return []
        load = copy.deepcopy(target)
        load.ctx = ast.Load()  # type: ignore[attr-defined]
        value = _call("_gl_cast", load, _text(path))
        return [_try(ast.Assign(targets=[copy.deepcopy(target)], value=value), [ast.Pass()])]

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
        node.test = _load("_gl_test_value")
        node.body = self.block(node.body, seen)
        node.orelse = self.block(node.orelse, seen) if node.orelse else []
        return [before, node]

    def _for(self, node: ast.For, seen: FrozenSet[str]) -> List[ast.stmt]:
        temporary = f"_gl_items_{node.lineno}_{node.col_offset}"
        before = self._evaluated(temporary, node.iter, seen)
        node.iter = _call("_gl_loop", _load(temporary), ast.Constant(value=node.lineno))
        casts = self._casts(node.target)
        node.body = [*casts, *self.block(node.body, seen)]
        node.orelse = self.block(node.orelse, seen) if node.orelse else []
        return [before, node]

    def _while(self, node: ast.While, seen: FrozenSet[str]) -> List[ast.stmt]:
        test = self._evaluated("_gl_test_value", node.test, seen, test=True)
        leave: List[ast.stmt] = [*(self.block(node.orelse, seen) if node.orelse else []), ast.Break()]
        stop = ast.If(test=ast.UnaryOp(op=ast.Not(), operand=_load("_gl_test_value")), body=leave, orelse=[])
        body = [_at(test, node), _at(stop, node), *self.block(node.body, seen)]
        rounds = _call("_gl_while", ast.Constant(value=node.lineno))
        return [ast.For(target=_store("_gl_round"), iter=rounds, body=body, orelse=[])]

    def _with(self, node: ast.With, seen: FrozenSet[str]) -> List[ast.stmt]:
        """Each manager is evaluated by itself and entered through a wrapper that cannot fail."""
        body = self.block(node.body, seen)
        for number, item in reversed(list(enumerate(node.items))):
            temporary = f"_gl_with_{node.lineno}_{node.col_offset}_{number}"
            before = self._evaluated(temporary, item.context_expr, seen)
            casts = self._casts(item.optional_vars) if item.optional_vars is not None else []
            entered = ast.withitem(
                context_expr=_call("_gl_manager", _load(temporary)), optional_vars=item.optional_vars
            )
            body = [before, ast.With(items=[entered], body=[*casts, *body])]
            for new in body:
                _at(new, node)
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
        failed: ast.expr = _call("_gl_failed", _text(text), _names(names), _names(sorted(seen)))
        if test:
            new, failed = _call("_gl_test", new), _call("_gl_test", failed)
        plain = _at(ast.Assign(targets=[_store(name)], value=new), value)
        handler = _at(ast.Assign(targets=[_store(name)], value=failed), value)
        return _at(_try(plain, [handler]), value)


class _Expressions(ast.NodeTransformer):
    """``not x``, ``x is None`` and conditional expressions, so that they know ghosts; ``__name__`` of a script."""

    def __init__(self, is_main: bool) -> None:
        self.is_main = is_main

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == "__name__" and self.is_main:
            return _at(_text("__main__"), node)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not):
            return _at(_call("_gl_not", node.operand), node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            right = node.comparators[0]
            if isinstance(right, ast.Constant) and right.value is None:
                negated = ast.Constant(value=isinstance(node.ops[0], ast.IsNot))
                return _at(_call("_gl_is_none", node.left, _text(dotted(node.left) or ""), negated), node)
            if not isinstance(right, ast.Constant):
                negated = ast.Constant(value=isinstance(node.ops[0], ast.IsNot))
                return _at(_call("_gl_same", node.left, right, negated), node)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and isinstance(node.slice, (ast.Name, ast.Attribute, ast.Call)):
            return _at(_call("_gl_item", node.value, node.slice), node)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        node.test = _at(_call("_gl_test", node.test), node.test)
        return node


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
            argument.annotation = ast.Constant(value="object")


def _touches_grad(node: ast.stmt) -> bool:
    """Whether the statement writes a ``.grad``: ``p.grad = None``, ``p.grad.zero_()``, ``p.grad /= s``."""
    for child in ast.walk(node):
        if not (isinstance(child, ast.Attribute) and child.attr == "grad"):
            continue
        if isinstance(child.ctx, ast.Store) or isinstance(node, (ast.AugAssign, ast.Expr)):
            return True
    return False


def _as_target(node: ast.expr) -> Optional[ast.expr]:
    return copy.deepcopy(node) if isinstance(node, _Bindable) else None


def _try(node: ast.stmt, handler: List[ast.stmt]) -> ast.Try:
    caught = ast.ExceptHandler(type=_load("_gl_Exception"), name=None, body=handler)
    return ast.Try(body=[node], handlers=[caught], orelse=[], finalbody=[])


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(func=_load(name), args=list(args), keywords=[])


def _load(name: str) -> ast.Name:
    return ast.Name(id=name, ctx=ast.Load())


def _store(name: str) -> ast.Name:
    return ast.Name(id=name, ctx=ast.Store())


def _text(value: str) -> ast.Constant:
    return ast.Constant(value=value)


def _names(names: Sequence[str]) -> ast.Tuple:
    return ast.Tuple(elts=[ast.Constant(value=n) for n in names], ctx=ast.Load())


_Node = TypeVar("_Node", bound=ast.AST)


def _at(new: _Node, old: ast.AST) -> _Node:
    """Give ``new`` and the nodes in it that have no place the place of ``old``."""
    place: Tuple[int, int] = (getattr(old, "lineno", 1), getattr(old, "col_offset", 0))
    todo: List[ast.AST] = [new]
    while todo:
        node = todo.pop()
        if "lineno" in node._attributes and not hasattr(node, "lineno"):
            node.lineno, node.col_offset = place  # type: ignore[attr-defined]
            node.end_lineno, node.end_col_offset = place  # type: ignore[attr-defined]
        elif "lineno" in node._attributes and node is not new:
            continue
        todo.extend(ast.iter_child_nodes(node))
    return new
