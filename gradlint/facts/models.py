"""The models of a file: each class or ``Sequential`` that holds layers, read as a layer graph."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from gradlint.facts.callsites import CallSite
from gradlint.facts.interp import ControlFlow, Interp, TooLarge, tensors
from gradlint.facts.module_tree import children, layers_of, modules_of, name_paths
from gradlint.facts.modules import ModuleEnv
from gradlint.facts.values import UNKNOWN, ClassValue, Container, Env, FuncValue, Instance, Place, Tensor, Value
from gradlint.facts.vanishing import worth_a_look
from gradlint.probe.worker.layergraph import INPUT, OUTPUT, WEIGHT, Chain, LayerGraph, chains, plain_stretch
from gradlint.rule import Location

MIN_HELD, MIN_SHARE = 4, 0.6
"""Weight layers, and share of the chain, that make an inner class the chain's home."""
MAX_SITES = 4
"""Calls of a class that are read."""
_WIDTHS = re.compile(r"(hidden|layer|mlp|fc)_?\w*(sizes|dims|units|widths|layers)$|^(layers|widths|net_arch)$")
"""Arguments that tell how many layers there are, and how wide each is."""


@dataclass(frozen=True)
class Site:
    """A call that makes a model: its arguments, evaluated as far as the text tells, and its line (0: defaults)."""

    args: tuple[Value, ...]
    kwargs: dict[str, Value]
    line: int = 0
    text: str = ""
    """The arguments as written, to tell calls on one line apart."""
    hidden: bool = False
    """Some arguments are in a ``*`` or ``**`` that the text does not tell."""

    @property
    def told(self) -> bool:
        """Whether every argument is known."""
        return not any(v is UNKNOWN for v in (*self.args, *self.kwargs.values()))


@dataclass(frozen=True)
class Initialiser:
    """How code outside a model initialises it: ``model.apply(function)``, ``function(model)``, ``model.method()``."""

    function: str
    """Empty where it is not told by name. Of a method with arguments: the call as written, ``init(std=0.02)``."""
    how: Literal["apply", "call", "method"] = "call"
    home: str = ""
    """The file in which the function has this name, if that is not the model's own."""


@dataclass(frozen=True)
class Initialised:
    """A layer whose weight the text gives its values: where it is in the model, how, and the call that does."""

    path: str
    init: str
    at: Place
    fan_in: int | None = None
    made_by_hand: bool = False
    """A parameter of the model itself: a weight only if the forward multiplies with it."""


@dataclass(frozen=True)
class ModelFacts:
    """One model: where it is, what it computes, how the probe can make it."""

    symbol: str
    location: Location
    kind: Literal["class", "function", "variable"]
    qualname: str
    scope: str | None
    graph: LayerGraph
    chains: tuple[Chain, ...]
    uncertain: bool
    """Some loop or branch could not be followed: a chain may be longer than it looks."""
    initialised_elsewhere: bool = False
    """Code outside the model initialises it or loads weights into it."""
    derivatives_taken: bool = False
    """The file takes derivatives with respect to inputs (``torch.autograd.grad``), as PINNs do."""
    optimizer: Literal["sgd", "adam", "none"] = "none"
    made_at: tuple[int, str] = (0, "")
    """Line and arguments of the call with which the model was read; 0 for its defaults."""
    arguments_hidden: bool = False
    """The call passes arguments that the text does not tell: depth and norms may be others than they look."""
    initialisers: tuple[Initialiser, ...] = ()
    """What code outside the model does to its weights, where it can be followed: the graph shows the outcome."""
    initialised: tuple[Initialised, ...] = ()
    """The layers with an explicit initialiser."""
    site: Site | None = field(default=None, compare=False, repr=False)
    """The call with which the model was read."""
    file: str = ""
    """The file, as the places of initialisers call it."""


Homes = Callable[[str], ModuleEnv | None]
"""From a file's path to its top level."""
ProjectSites = Callable[[str], Iterable[tuple[CallSite, ModuleEnv]]]
"""From the name of a class to the calls of it in other files of the project."""


def read_models(module: ModuleEnv, project_sites: ProjectSites | None = None) -> tuple[ModelFacts, ...]:
    """Every model that the file defines: its ``nn.Module`` classes, and ``Sequential`` calls outside of classes.

    ``project_sites`` is asked only for classes that the file does not make itself and whose chains could matter.
    """
    found: list[ModelFacts] = []
    used_by_classes: set[tuple[int, int]] = set()
    inner: dict[str, list[Site]] = {}
    for node in _classes(module.tree):
        interp = Interp()
        module.evaluator.current = interp.eval
        cls = ClassValue(node, module)
        if not _interesting(node, cls, interp) or _only_a_base(node, module):
            continue
        facts = _read_class(cls, module, used_by_classes, project_sites, inner)
        if facts is not None:
            found.append(facts)
    found = [_as_made_inside(facts, module, inner.get(facts.qualname, ())) for facts in found]
    found.extend(_read_sequentials(module, used_by_classes))
    return tuple(found)


def _classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.ClassDef):
            yield node
        elif isinstance(node, (ast.If, ast.Try)):
            todo[:0] = [*node.body, *node.orelse]


def _interesting(node: ast.ClassDef, cls: ClassValue, interp: Interp) -> bool:
    if not node.bases:
        return False
    table = interp.table
    try:
        if not table.objects.is_module(cls):
            return False
        return (
            table.objects.find_method(cls, "forward") is not None or table.objects.container_base(cls) == "Sequential"
        )
    except (TooLarge, RecursionError):
        return False


def _only_a_base(node: ast.ClassDef, module: ModuleEnv) -> bool:
    """A class that the file derives from and never makes: its subclasses are the models."""
    if node.name in module.calls:
        return False
    bases = (b for other in _classes(module.tree) for b in other.bases)
    return any(isinstance(b, ast.Name) and b.id == node.name for b in bases)


def _read_class(
    cls: ClassValue,
    module: ModuleEnv,
    used: set[tuple[int, int]],
    project_sites: ProjectSites | None,
    inner: dict[str, list[Site]],
) -> ModelFacts | None:
    """Follow the class with each set of arguments that the project shows; the worst reading counts.

    ``inner`` collects how it makes other classes of the file.
    """
    own = list(_call_sites(cls, module))[:MAX_SITES]
    unseen = Site((), {}, hidden=cls.node.name in module.handed_over)
    best = _worst(cls, module, own or [unseen])
    if project_sites is not None and not any(s.told for s in own) and _could_matter(best):
        elsewhere = list(_project_sites(cls, module, project_sites))[:MAX_SITES]
        best = (_worst(cls, module, elsewhere) if elsewhere else None) or best
    if best is None:
        return None
    interp, instance, _ = best[1:]
    for c in modules_of(instance):
        if isinstance(c, Container) and c.file == module.path:
            used.add((c.line, c.column))
    for c in interp.containers:
        used.add((c.line, c.column))
    for part in modules_of(instance):
        if isinstance(part, Instance) and part is not instance and part.cls.module is module:
            inner.setdefault(part.cls.node.name, []).append(Site(*part.made_with))
    return _facts(cls, module, best)


def _as_made_inside(facts: ModelFacts, module: ModuleEnv, sites: Sequence[Site]) -> ModelFacts:
    """A class of which no call tells how deep it is, as another class of the file makes it."""
    told = facts.site is not None and facts.site.line and facts.site.told
    cls = module.lookup(facts.qualname)
    if told or not sites or not isinstance(cls, ClassValue):
        return facts
    best = _worst(cls, module, [s for s in sites if s.told][:MAX_SITES] or list(sites)[:MAX_SITES])
    made = None if best is None else replace(_facts(cls, module, best), made_at=facts.made_at)
    return facts if made is None or (made.uncertain and not facts.uncertain) else made


def _facts(cls: ClassValue, module: ModuleEnv, best: _Reading) -> ModelFacts:
    interp, instance, site = best[1:]
    graph = interp.graph()
    node = cls.node
    return ModelFacts(
        symbol=node.name,
        location=_header(module, node),
        kind="class",
        qualname=node.name,
        scope=None,
        graph=graph,
        chains=_held(instance, graph),
        uncertain=not interp.complete or any(n.attrs.get("uncertain") for n in graph.nodes),
        made_at=(site.line, site.text),
        arguments_hidden=site.hidden,
        initialised=_initialised(instance),
        site=site,
        file=module.path,
    )


def _held(instance: Instance, graph: LayerGraph) -> tuple[Chain, ...]:
    return tuple(c for c in chains(graph) if _holder(instance, c) is instance)


def _initialised(module: Value) -> tuple[Initialised, ...]:
    found = (layer for layer in layers_of(module) if layer.kind == WEIGHT and layer.init_at is not None)
    return tuple(
        Initialised(x.path, x.init, x.init_at, x.fan_in, x.cls == "Parameter") for x in found if x.init_at is not None
    )


_Reading = tuple[tuple[int, int], Interp, Instance, Site]


def _worst(cls: ClassValue, module: ModuleEnv, sites: Sequence[Site]) -> _Reading | None:
    """The reading with the longest stretch of layers without a normalization, then with the deepest chain."""
    best: _Reading | None = None
    for site in sites:
        read = _forward(cls, module, site.args, site.kwargs)
        if read is None:
            continue
        found = chains(read[0].graph())
        key = (max((plain_stretch(c) for c in found), default=0), max((c.depth for c in found), default=0))
        if best is None or key > best[0]:
            best = (key, *read, site)
    return best


def _could_matter(best: _Reading | None) -> bool:
    if best is None or any(worth_a_look(c) for c in chains(best[1].graph())):
        return True
    # how many layers there are is not told, and has no default: a call may tell
    init = best[1].table.objects.find_method(best[2].cls, "__init__")
    if init is None:
        return False
    spec = init.node.args
    if any(_WIDTHS.search(a.arg) for a in (*spec.args, *spec.kwonlyargs)):
        return True
    if len(spec.args) - len(spec.defaults) < 2:
        return False
    open_ended = any(node.kind == WEIGHT and node.attrs.get("uncertain") for node in best[1].nodes)
    return open_ended or (not best[1].complete and any(isinstance(n, ast.For) for n in ast.walk(best[2].cls.node)))


def _project_sites(cls: ClassValue, module: ModuleEnv, project_sites: ProjectSites) -> Iterator[Site]:
    interp = Interp()
    module.evaluator.current = interp.eval
    for call, home in project_sites(cls.node.name):
        env = Env(home)
        try:
            args = tuple(interp.eval(ast.parse(a, mode="eval").body, env) for a in call.args)
            kwargs = {k: interp.eval(ast.parse(v, mode="eval").body, env) for k, v in call.kwargs.items()}
        except (TooLarge, RecursionError, ControlFlow, SyntaxError):
            continue
        yield Site(args, kwargs, call.line, arguments(call.args, call.kwargs))


def _forward(
    cls: ClassValue,
    module: ModuleEnv,
    args: Sequence[Value],
    kwargs: dict[str, Value],
    initialisers: Sequence[Initialiser] = (),
    homes: Homes | None = None,
) -> tuple[Interp, Instance] | None:
    interp = Interp()
    module.evaluator.current = interp.eval
    try:
        instance = interp.table.objects.construct(cls, list(args), dict(kwargs))
        if not isinstance(instance, Instance):
            return None
        name_paths(instance)
        for initialiser in initialisers:
            home = homes(initialiser.home) if initialiser.home and homes is not None else module
            if home is None or not _apply(interp, home, instance, initialiser):
                return None
        interp.nodes.clear()
        run_forward(interp, instance)
    except (TooLarge, RecursionError, ControlFlow):
        return None
    return interp, instance


def _apply(interp: Interp, module: ModuleEnv, instance: Instance, initialiser: Initialiser) -> bool:
    """Follow what code outside does to a model's weights; whether it could be found."""
    if initialiser.how == "method":
        called = ast.parse(initialiser.function, mode="eval").body
        name = called.func if isinstance(called, ast.Call) else called
        func = interp.table.objects.find_method(instance.cls, name.id) if isinstance(name, ast.Name) else None
        if func is None:
            return False
        args = [ast.literal_eval(a) for a in called.args] if isinstance(called, ast.Call) else []
        named = {k.arg: ast.literal_eval(k.value) for k in called.keywords} if isinstance(called, ast.Call) else {}
        kwargs: dict[str, Value] = {k: v for k, v in named.items() if k is not None}
        interp.call_function(FuncValue(func.node, func.module, func.env, instance, func.owner), args, kwargs)
        return True
    func = module.lookup(initialiser.function)
    if not isinstance(func, FuncValue):
        return False
    for target in list(modules_of(instance)) if initialiser.how == "apply" else [instance]:
        interp.call_function(func, [target], {})
    return True


def run_forward(interp: Interp, module: Value) -> None:
    """Call ``module`` on live inputs and mark what it returns as output."""
    inputs: list[Value] = []
    if isinstance(module, Instance):
        forward = interp.table.objects.find_method(module.cls, "forward")
        if forward is None and "__items__" not in module.attrs:
            return
        inputs = _inputs(interp, forward) if forward is not None else [interp.emit(INPUT, "input", [])]
    else:
        inputs = [interp.emit(INPUT, "input", [])]
    result = interp.table.apply(module, inputs, {}, 0)
    out = list(tensors(result)) or ([Tensor(len(interp.nodes) - 1)] if result is UNKNOWN and interp.nodes else [])
    if isinstance(result, Instance):
        out = list(tensors(list(result.attrs.values())))
    if out:
        interp.emit(OUTPUT, "output", out)


def arguments(args: Iterable[str], kwargs: Mapping[str, str]) -> str:
    """Arguments of a call as one text."""
    return ", ".join([*args, *(f"{name}={value}" for name, value in kwargs.items())])


def with_initialisers(
    module: ModuleEnv, model: ModelFacts, found: Sequence[Initialiser], homes: Homes | None = None
) -> ModelFacts | None:
    """The model after code outside has initialised it: unchanged where that changes no weight of it.

    None where the text does not tell what is done.
    """
    if not all(i.function for i in found):
        return None
    if model.kind == "variable":
        return model  # its statements are part of the reading
    cls = module.lookup(model.qualname)
    if not isinstance(cls, ClassValue):
        return None
    site = model.site or Site((), {})
    read = _forward(cls, module, site.args, dict(site.kwargs), found, homes)
    if read is None:
        return None
    interp, instance = read
    if any(layer.init == "unknown" and layer.kind == WEIGHT for layer in layers_of(instance)):
        return None
    initialised = _initialised(instance)
    if initialised == model.initialised:
        return model
    graph = interp.graph()
    return replace(
        model, graph=graph, chains=_held(instance, graph), initialisers=tuple(found), initialised=initialised
    )


def _inputs(interp: Interp, forward: FuncValue) -> list[Value]:
    spec = forward.node.args
    names = [a.arg for a in (*spec.posonlyargs, *spec.args)][1:]
    required = len(names) - len(spec.defaults)
    if spec.vararg is not None and not names:
        return [interp.emit(INPUT, "input", [])]
    return [interp.emit(INPUT, name, []) for name in names[: max(required, 0)]]


def _holder(root: Instance, chain: Chain) -> Instance:
    """The innermost project class that holds enough of the chain to be its home."""
    paths = [layer.path for layer in chain.layers]
    best, todo = root, [(root, "")]
    while todo:
        here, prefix = todo.pop()
        for key, value in children(here):
            start = f"{prefix}{key}."
            inside = sum(1 for p in paths if p.startswith(start))
            if inside >= MIN_HELD and inside >= MIN_SHARE * len(paths):
                best = value if isinstance(value, Instance) else best
                todo.append((value, start))
    return best


def _call_sites(cls: ClassValue, module: ModuleEnv) -> Iterator[Site]:
    """Arguments with which the file itself makes the class, evaluated as far as they are literal."""
    interp = Interp()
    module.evaluator.current = interp.eval
    for scope, call in module.calls.get(cls.node.name, ()):
        if scope is not None and any(scope is n for n in ast.walk(cls.node)):
            continue
        env = Env(module)
        if scope is not None:
            _literal_locals(scope, env, interp)
            if scope.args.kwarg is not None and not _called_with_keywords(module, scope.name):
                env.vars[scope.args.kwarg.arg] = {}  # `def small(**kwargs): return Net(**kwargs)`
        try:
            args = tuple(interp.eval(a, env) for a in call.args if not isinstance(a, ast.Starred))
            kwargs = {k.arg: interp.eval(k.value, env) for k in call.keywords if k.arg is not None}
            spreads = [interp.eval(k.value, env) for k in call.keywords if k.arg is None]
            kwargs.update({k: v for s in spreads if isinstance(s, dict) for k, v in s.items() if isinstance(k, str)})
            hidden = any(isinstance(a, ast.Starred) for a in call.args) or any(not isinstance(s, dict) for s in spreads)
        except (TooLarge, RecursionError, ControlFlow):
            continue
        named = {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg is not None}
        yield Site(args, kwargs, call.lineno, arguments([ast.unparse(a) for a in call.args], named), hidden)


def _called_with_keywords(module: ModuleEnv, function: str) -> bool:
    return any(call.keywords for _, call in module.calls.get(function, ()))


def _literal_locals(scope: ast.FunctionDef, env: Env, interp: Interp) -> None:
    """The locals of a function, as far as its defaults and its own statements tell them literally."""
    defaults = scope.args.defaults
    names = [a.arg for a in scope.args.args]
    for a in scope.args.args:
        env.vars[a.arg] = interp.from_annotation(a.annotation, Env(env.module)) if a.annotation else UNKNOWN
    for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        if _is_plain(default) or isinstance(default, (ast.Name, ast.Attribute)):
            env.vars[name] = interp.eval(default, Env(env.module))
    _assign_locals(scope.body, env, interp)


def _assign_locals(body: Sequence[ast.stmt], env: Env, interp: Interp) -> None:
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            env.vars[node.targets[0].id] = interp.eval(node.value, env) if _is_plain(node.value) else UNKNOWN
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Compare):
            left, right = node.test.left, node.test.comparators[0]
            absent = isinstance(node.test.ops[0], ast.Is) and isinstance(right, ast.Constant) and right.value is None
            if absent and isinstance(left, ast.Name) and env.vars.get(left.id, UNKNOWN) is None:
                _assign_locals(node.body, env, interp)  # `if layers is None: layers = [2] + 8 * [20] + [1]`


def _is_plain(value: ast.expr) -> bool:
    kinds = (ast.Constant, ast.List, ast.Tuple, ast.Load, ast.BinOp, ast.operator, ast.Dict)
    return all(isinstance(n, kinds) for n in ast.walk(value))


def _read_sequentials(module: ModuleEnv, used: set[tuple[int, int]]) -> Iterator[ModelFacts]:
    """``nn.Sequential(...)`` calls outside of classes, each with the way to make it again."""
    for node, scope, holder in _sequential_calls(module):
        if (node.lineno, node.col_offset) in used:
            continue
        interp = Interp()
        module.evaluator.current = interp.eval
        made = _containers_of(interp, module, scope)
        mine = [c for c in made if (c.line, c.column) == (node.lineno, node.col_offset) and not c.nested]
        if not mine:
            continue
        container = mine[-1]
        name_paths(container)
        interp.nodes.clear()
        try:
            run_forward(interp, container)
        except (TooLarge, RecursionError, ControlFlow):
            continue
        graph = interp.graph()
        kind: Literal["function", "variable"] = "variable" if holder else "function"
        if kind == "function" and (scope is None or not _returns(scope, node)):
            continue
        yield ModelFacts(
            symbol=holder or (scope.name if scope is not None else "<module>"),
            location=_location(module, node.lineno, node.col_offset, node.end_lineno, node.end_col_offset),
            kind=kind,
            qualname=holder or (scope.name if scope else ""),
            scope=scope.name if scope is not None and kind == "variable" else None,
            graph=graph,
            chains=tuple(chains(graph)),
            uncertain=container.open or not interp.complete,
            initialised=_initialised(container),
            file=module.path,
        )


def _sequential_calls(module: ModuleEnv) -> Iterator[tuple[ast.Call, ast.FunctionDef | None, str | None]]:
    """Each outermost call of ``nn.Sequential`` outside a class, the function around it, the name it is bound to."""
    todo: list[tuple[ast.AST, ast.FunctionDef | None, str | None]] = [(module.tree, None, None)]
    while todo:
        node, scope, name = todo.pop()
        if isinstance(node, ast.ClassDef):
            continue
        if isinstance(node, ast.Call) and _is_sequential(node, module):
            yield node, scope, name
            continue
        if isinstance(node, ast.FunctionDef):
            scope = node if scope is None else scope
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif isinstance(node, ast.stmt):
            name = None
        todo.extend((child, scope, name) for child in ast.iter_child_nodes(node))


def _is_sequential(node: ast.Call, module: ModuleEnv) -> bool:
    func = node.func
    if isinstance(func, ast.Attribute):
        return func.attr == "Sequential"
    return isinstance(func, ast.Name) and func.id == "Sequential" and module.binds("Sequential")


def _containers_of(interp: Interp, module: ModuleEnv, scope: ast.FunctionDef | None) -> list[Container]:
    try:
        if scope is not None:
            args, kwargs = _function_site(interp, module, scope)
            interp.call_function(FuncValue(scope, module), args, kwargs)
        else:
            env = Env(module)
            for stmt in module.tree.body:
                if isinstance(stmt, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.Expr)):
                    env_before = env.vars
                    interp.statement(stmt, env)
                    env.vars = env_before
    except (TooLarge, RecursionError, ControlFlow):
        pass  # what was made until then counts
    return interp.containers


def _function_site(interp: Interp, module: ModuleEnv, scope: ast.FunctionDef) -> tuple[list[Value], dict[str, Value]]:
    for outer, call in module.calls.get(scope.name, ()):
        env = Env(module)
        if outer is not None:
            _literal_locals(outer, env, interp)
        args = [interp.eval(a, env) for a in call.args if not isinstance(a, ast.Starred)]
        kwargs = {k.arg: interp.eval(k.value, env) for k in call.keywords if k.arg is not None}
        return args, kwargs
    return [], {}


def _returns(scope: ast.FunctionDef, call: ast.Call) -> bool:
    return any(
        isinstance(n, ast.Return) and n.value is not None and any(m is call for m in ast.walk(n.value))
        for n in ast.walk(scope)
    )


def _header(module: ModuleEnv, node: ast.ClassDef) -> Location:
    """``class Net(nn.Module)``, as far as it stands on its first line."""
    ends = [e.end_col_offset for e in (*node.bases, *(k.value for k in node.keywords)) if e.end_lineno == node.lineno]
    start = node.col_offset + len("class ") + len(node.name.encode())
    end = max(e for e in ends if e is not None) + 1 if ends else start
    return _location(module, node.lineno, node.col_offset, node.lineno, end)


def _location(module: ModuleEnv, line: int, column: int, end_line: int | None, end_column: int | None) -> Location:
    """From byte columns counted from 0 to character columns counted from 1."""
    lines = module.lines
    text = lines[line - 1] if lines and line <= len(lines) else ""
    last = lines[end_line - 1] if lines and end_line and end_line <= len(lines) else text
    start = len(text.encode()[:column].decode(errors="ignore")) + 1
    end = (
        len(last.rstrip("\r\n")) + 1
        if end_column is None
        else len(last.encode()[:end_column].decode(errors="ignore")) + 1
    )
    return Location(line, start, end_line or line, end)


def concrete_classes(module: ModuleEnv) -> Iterator[str]:
    """Names of the file's ``nn.Module`` classes that have a ``forward``, their own or an inherited one."""
    for node in _classes(module.tree):
        interp = Interp()
        module.evaluator.current = interp.eval
        if _interesting(node, ClassValue(node, module), interp):
            yield node.name
