"""What a name in a source file stands for: import aliases, shadowing, and the full dotted name of an expression.

    import torch.nn.functional as F          F.relu        -> "torch.nn.functional.relu"
    from torch.nn.utils import clip_grad as c
                                             c.clip_grad_norm_ -> "torch.nn.utils.clip_grad_norm_"
    def step(F): F.relu(x)                   F.relu in step -> None (a parameter)

One pass over the statements of a file (not over its expressions) builds the table; a lookup afterwards is a few
dictionary hits. Nothing is imported and nothing is run.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from typing import Literal

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
ScopeNode = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_BUILTINS = frozenset(dir(builtins))
_MAX_ALIASES = 20

# Where torch documents a name in one module and defines it in another one below: `torch.optim.adam.Adam`.
_DOCUMENTED_IN = {
    "torch.nn.modules": "torch.nn",
    "torch.nn.parallel": "torch.nn.parallel",
    "torch.nn.utils": "torch.nn.utils",
    "torch.optim": "torch.optim",
    "torch.utils.data": "torch.utils.data",
    "torch.cuda.amp": "torch.cuda.amp",
    "torch.amp": "torch.amp",
    "torch.autograd": "torch.autograd",
}
# Modules below those whose names are documented where they are.
_HOMES = frozenset(
    {
        "torch.nn.modules.utils",
        "torch.nn.utils.rnn",
        "torch.nn.utils.prune",
        "torch.nn.utils.parametrize",
        "torch.nn.utils.parametrizations",
        "torch.nn.utils.stateless",
        "torch.nn.utils.fusion",
        "torch.optim.lr_scheduler",
        "torch.optim.swa_utils",
        "torch.utils.data.distributed",
        "torch.autograd.functional",
        "torch.autograd.profiler",
        "torch.autograd.forward_ad",
        "torch.autograd.graph",
    }
)
_MOVED = {
    "torch.functional": "torch",
    "torch._tensor": "torch",
    "torch.nn.parameter": "torch.nn",
    "torch.nn.parallel.DataParallel": "torch.nn.DataParallel",
    "torch.utils.data.distributed.DistributedSampler": "torch.utils.data.DistributedSampler",
    "torch.distributed.fsdp.fully_sharded_data_parallel": "torch.distributed.fsdp",
    "torch.autograd.no_grad": "torch.no_grad",
    "torch.autograd.enable_grad": "torch.enable_grad",
    "torch.autograd.set_grad_enabled": "torch.set_grad_enabled",
    "torch.autograd.inference_mode": "torch.inference_mode",
}


def canonical(dotted: str) -> str:
    """The documented name of what ``dotted`` names: ``torch.nn.modules.linear.Linear`` -> ``torch.nn.Linear``.

    Names outside torch come back unchanged.
    """
    if not dotted.startswith("torch."):
        return dotted
    dotted = _documented(dotted)
    for old, new in _MOVED.items():
        if dotted == old or dotted.startswith(f"{old}."):
            return new + dotted[len(old) :]
    return dotted


def _documented(dotted: str) -> str:
    """Drops the module between a home and a name: ``torch.optim.adam.Adam``; a module alone keeps its name."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 1, -1):
        prefix = ".".join(parts[:cut])
        if prefix not in _DOCUMENTED_IN:
            continue
        rest = parts[cut:]
        if f"{prefix}.{rest[0]}" in _HOMES or (len(rest) == 1 and rest[0].islower()):
            return dotted
        return ".".join([_DOCUMENTED_IN[prefix], *(rest[1:] if rest[0].islower() and len(rest) > 1 else rest)])
    return dotted


class Binding:
    """One place that binds a name in a scope.

    ``target`` is a full dotted name (imports, definitions), ``alias`` an expression the name is assigned from.
    With neither, the name is bound to something that the text does not name. ``fallback`` marks a binding in an
    ``except`` handler or an ``else`` branch.
    """

    __slots__ = ("alias", "fallback", "node", "target")

    def __init__(self, node: ast.AST, fallback: bool, target: str | None = None, alias: ast.expr | None = None) -> None:
        self.node = node
        self.fallback = fallback
        self.target = target
        self.alias = alias

    @property
    def is_import(self) -> bool:
        """Whether an import statement binds the name."""
        return isinstance(self.node, (ast.Import, ast.ImportFrom))


class Scope:
    """A module, class or function body: its names, and the scope around it."""

    __slots__ = ("_known", "bindings", "globals", "kind", "node", "nonlocals", "parent", "qualname")

    def __init__(
        self, kind: Literal["module", "class", "function"], node: ScopeNode, parent: Scope | None, qualname: str
    ) -> None:
        self.kind = kind
        self.node = node
        self.parent = parent
        self.qualname = qualname
        self.bindings: dict[str, list[Binding]] = {}
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()
        self._known: dict[str, str | None] = {}

    def binding(self, name: str) -> Binding | None:
        """The binding that decides what ``name`` is in this scope, not looking outside; None where it is not bound."""
        found = self.bindings.get(name)
        if not found:
            return None
        firm = [b for b in found if not b.fallback] or found[:1]
        return firm[-1]

    def find(self, name: str) -> Scope | None:
        """The scope that binds ``name`` as seen from here: class bodies are not seen from the functions in them."""
        here: Scope | None = self
        while here is not None:
            if name in here.globals:
                return here.module
            if name in here.bindings and (here is self or here.kind != "class"):
                return here
            here = here.parent
        return None

    @property
    def module(self) -> Scope:
        """The outermost scope."""
        here = self
        while here.parent is not None:
            here = here.parent
        return here


class Names:
    """The names of one file."""

    def __init__(self, tree: ast.Module, module: str, package: str) -> None:
        self.module = module
        self.package = package
        self.top = Scope("module", tree, None, "")
        self.scopes: dict[ast.AST, Scope] = {tree: self.top}
        self.stars: list[tuple[ast.ImportFrom, str]] = []
        """``from x import *`` at module level: the statement and the full name of the module."""
        self._collect(tree.body, self.top, False)

    @staticmethod
    def of(tree: ast.Module, module: str = "", package: str = "") -> Names:
        """The names of ``tree``; ``module`` is its full name and ``package`` what relative imports start from."""
        return Names(tree, module, package)

    def scope(self, node: ast.AST) -> Scope:
        """The scope that a module, class or function node opens. Raises KeyError for any other node."""
        return self.scopes[node]

    def qualified(self, expr: ast.expr, scope: Scope | None = None) -> str | None:
        """The full dotted name of ``expr`` as seen from ``scope`` (default: the module), or None.

        ``x.y.z`` is resolved through imports, definitions of this file (``"<module>.Name"``) and plain assignments
        of one name to another (``clip = nn.utils.clip_grad_norm_``); builtins give ``"builtins.name"``.
        """
        return self._qualified(expr, scope or self.top, 0)

    def _qualified(self, expr: ast.expr, scope: Scope, depth: int) -> str | None:
        tail: list[str] = []
        while isinstance(expr, ast.Attribute):
            tail.append(expr.attr)
            expr = expr.value
        if not isinstance(expr, ast.Name):
            return None
        head = self._name(expr.id, scope, depth)
        if head is None:
            return None
        return canonical(".".join([head, *reversed(tail)])) if tail else head

    def _name(self, name: str, scope: Scope, depth: int) -> str | None:
        home = scope.find(name)
        if home is None:
            return self._unbound(name)
        if name in home._known:
            return home._known[name]
        if depth > _MAX_ALIASES:
            return None
        home._known[name] = None  # a name that is assigned from itself
        value = self._meaning(name, home, depth)
        home._known[name] = value
        return value

    def _meaning(self, name: str, home: Scope, depth: int) -> str | None:
        """At module level the last binding counts; in a function all have to agree, since the text gives no order."""
        found = home.bindings.get(name)
        if not found:  # `global name` in a function, of a name that the module itself never binds
            return None
        firm = [b for b in found if not b.fallback] or found[:1]
        if home.kind != "function":
            firm = firm[-1:]
        values = {self._target(b, name, home, depth) for b in firm}
        return values.pop() if len(values) == 1 else None

    def _target(self, binding: Binding, name: str, home: Scope, depth: int) -> str | None:
        if binding.target is not None:
            return canonical(binding.target)
        if binding.alias is None:
            return None
        head = binding.alias
        while isinstance(head, ast.Attribute):
            head = head.value
        if isinstance(head, ast.Name) and head.id == name:  # `F = F.relu`: the name on the right is the one before
            earlier = [b for b in home.bindings[name] if b is not binding and not b.fallback]
            return None if home.kind == "function" or not earlier else self._through(binding.alias, earlier[0])
        return self._qualified(binding.alias, home, depth + 1)

    def _through(self, alias: ast.expr, earlier: Binding) -> str | None:
        if earlier.target is None:
            return None
        tail: list[str] = []
        while isinstance(alias, ast.Attribute):
            tail.append(alias.attr)
            alias = alias.value
        return canonical(".".join([earlier.target, *reversed(tail)]))

    def _unbound(self, name: str) -> str | None:
        if name in _BUILTINS:
            return f"builtins.{name}"
        homes = {module for _, module in self.stars}
        return canonical(f"{homes.pop()}.{name}") if len(homes) == 1 else None

    def absolute(self, node: ast.ImportFrom) -> str:
        """The full name of the module that ``from ... import`` reads from."""
        return absolute(node, self.package)

    # -- the pass over the statements

    def _collect(self, body: Iterable[ast.stmt], scope: Scope, fallback: bool) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._definition(node, scope, fallback)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    target = alias.name if alias.asname else alias.name.split(".")[0]
                    self._bind(scope, alias.asname or target, Binding(node, fallback, target))
            elif isinstance(node, ast.ImportFrom):
                self._import_from(node, scope, fallback)
            elif isinstance(node, ast.Global):
                scope.globals.update(node.names)
            elif isinstance(node, ast.Nonlocal):
                scope.nonlocals.update(node.names)
            else:
                for name, alias_of in assigned(node):
                    self._bind(scope, name, Binding(node, fallback, None, alias_of))
                for block, other in blocks(node):
                    self._collect(block, scope, fallback or other)

    def _definition(self, node: FunctionNode | ast.ClassDef, scope: Scope, fallback: bool) -> None:
        inner = f"{scope.qualname}.<locals>." if scope.kind == "function" else f"{scope.qualname}."
        qualname = f"{inner}{node.name}" if scope.qualname else node.name
        target = f"{self.module}.{qualname}" if self.module else qualname
        self._bind(scope, node.name, Binding(node, fallback, target))
        kind: Literal["class", "function"] = "class" if isinstance(node, ast.ClassDef) else "function"
        child = Scope(kind, node, scope, qualname)
        self.scopes[node] = child
        if not isinstance(node, ast.ClassDef):
            spec = node.args
            extra = [a for a in (spec.vararg, spec.kwarg) if a is not None]
            for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *extra):
                self._bind(child, arg.arg, Binding(arg, False))
        self._collect(node.body, child, False)

    def _import_from(self, node: ast.ImportFrom, scope: Scope, fallback: bool) -> None:
        module = self.absolute(node)
        for alias in node.names:
            if alias.name == "*":
                self.stars.append((node, module))
            else:
                target = f"{module}.{alias.name}" if module else alias.name
                self._bind(scope, alias.asname or alias.name, Binding(node, fallback, target))

    def _bind(self, scope: Scope, name: str, binding: Binding) -> None:
        home = self.top if name in scope.globals else scope
        if name in scope.nonlocals and scope.parent is not None:
            home = scope.parent
        home.bindings.setdefault(name, []).append(binding)


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The full name of the module of ``from ... import``, for a file that lies in ``package``.

    An import that climbs out of the package (a script that was written as part of one) is read from the top.
    """
    module = node.module or ""
    if not node.level:
        return module
    parts = package.split(".") if package else []
    parts = parts[: max(len(parts) - (node.level - 1), 0)]
    return ".".join([*parts, module]) if module else ".".join(parts)


def assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """Names that one statement binds, its blocks left out, with the expression where it is a plain assignment."""
    if isinstance(node, ast.Assign):
        simple = node.value if isinstance(node.value, (ast.Name, ast.Attribute)) else None
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, simple
            else:
                yield from ((name, None) for name in target_names(target))
    elif isinstance(node, ast.AnnAssign):
        if isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value if isinstance(node.value, (ast.Name, ast.Attribute)) else None
    elif isinstance(node, (ast.AugAssign, ast.For, ast.AsyncFor)):
        yield from ((name, None) for name in target_names(node.target))
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        for item in node.items:
            if item.optional_vars is not None:
                yield from ((name, None) for name in target_names(item.optional_vars))
    elif isinstance(node, (ast.If, ast.While)):
        yield from ((n.target.id, None) for n in ast.walk(node.test) if isinstance(n, ast.NamedExpr))
    elif isinstance(node, ast.Match):
        for case in node.cases:
            for part in ast.walk(case.pattern):
                name = getattr(part, "name", None) or getattr(part, "rest", None)
                if isinstance(name, str):
                    yield name, None
    elif isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
        yield from ((h.name, None) for h in getattr(node, "handlers", ()) if h.name)


def target_names(target: ast.expr) -> Iterator[str]:
    """The names that an assignment target binds; ``a.b`` and ``a[0]`` bind none."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, (ast.Tuple, ast.List)):
        for part in target.elts:
            yield from target_names(part)
    elif isinstance(target, ast.Starred):
        yield from target_names(target.value)


def blocks(node: ast.stmt) -> Iterator[tuple[list[ast.stmt], bool]]:
    """The statement lists inside a compound statement, and whether each is a fallback for another."""
    if isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
        yield getattr(node, "body", []), False
        for handler in getattr(node, "handlers", ()):
            yield handler.body, True
        yield getattr(node, "orelse", []), False
        yield getattr(node, "finalbody", []), False
    elif isinstance(node, ast.If):
        yield node.body, False
        yield node.orelse, bool(node.orelse)
    elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
        yield node.body, False
        yield node.orelse, False
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        yield node.body, False
    elif isinstance(node, ast.Match):
        for case in node.cases:
            yield case.body, False
