"""What the file around a model says of it: which optimizer trains it, what initialises it from outside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from gradlint.facts.index import ProjectIndex, SourceFile
from gradlint.facts.models import Homes, Initialiser, ModelFacts, with_initialisers
from gradlint.facts.modules import ModuleEnv
from gradlint.facts.torch_ops import ADAM_FAMILY, INITIALISERS, SGD_FAMILY
from gradlint.facts.vanishing import Optimizer

_HARMLESS = frozenset({"print", "len", "id", "repr", "str", "summary", "list", "compile", "sum", "isinstance", "type"})
MAX_FILES = 500
"""Files of the project that are searched for uses of a model."""
_INITIALISING_WORDS = ("init", "weights", "pretrain", "checkpoint", "xavier", "kaiming", "orthogonal")
_LOADING_METHODS = frozenset({"load_state_dict", "load_weights", "load_pretrained", "from_pretrained", "load_from"})


_UNNAMED = Initialiser("")
_BUILDING = frozenset({"__init__", "forward", "load_state_dict", "fit", "train"})


@dataclass
class Surroundings:
    """One file's statements about objects it makes, keyed by the name of the class or function that makes them."""

    optimizers: dict[str, set[Optimizer]] = field(default_factory=dict)
    families: set[Optimizer] = field(default_factory=set)
    initialised: dict[str, set[Initialiser]] = field(default_factory=dict)
    derivatives_taken: bool = False
    factories: dict[str, str] = field(default_factory=dict)
    """Functions that return a model, and the class that makes it."""
    writing: frozenset[str] = frozenset()
    """Functions that initialise or load weights, and classes whose ``__init__`` does."""
    functions: frozenset[str] = frozenset()
    """All functions of the file."""
    methods: dict[str, frozenset[str]] = field(default_factory=dict)
    """The methods of each class of the file that write weights."""
    held: dict[str, frozenset[str]] = field(default_factory=dict)
    """For each class of the file, what its body calls by name: the modules that it holds are among them."""

    def outer(self, name: str) -> frozenset[str]:
        """The classes of the file that hold one, directly or through others."""
        found: set[str] = set()
        work = [name]
        while work:
            inner = work.pop()
            new = {cls for cls, held in self.held.items() if inner in held} - found - {name}
            found |= new
            work.extend(new)
        return frozenset(found)


def read_surroundings(tree: ast.Module) -> Surroundings:
    """One walk over the file; variables are followed by name within a function or the module."""
    found = Surroundings()
    found.factories, found.writing, found.functions = _factories(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name not in _BUILDING]
            wrote = {m.name for m in methods if any(_writes(n, found.writing) for n in _in_order(m))}
            found.methods[node.name] = frozenset(wrote)
            called = (n.func for n in _in_order(node) if isinstance(n, ast.Call))
            found.held[node.name] = frozenset(func.id for func in called if isinstance(func, ast.Name))
    for scope in _scopes(tree):
        _read_scope(scope, found)
    return found


def read_project(
    index: ProjectIndex, file: SourceFile, makers: frozenset[str], seen: dict[str, Surroundings]
) -> Surroundings:
    """What the other files of the project say of the objects that ``makers`` make. ``seen`` keeps what was read.

    What is done to a model of another file reaches the makers that it holds, directly or through others.
    """
    found = Surroundings()
    homes = dict.fromkeys(makers, file.real)
    roots = {maker: frozenset({maker}) for maker in makers}
    frontier = makers
    for _ in range(MAX_HOLDERS):
        holders: set[str] = set()
        for real, around in _mentioning(index, file, frontier, seen):
            other = index.parse(real)
            ours = [name for name in sorted(frontier) if other is not None and _is_from(index, other, name, homes)]
            for name in ours:
                _note(found, roots[name], around, name, real)
                for outer in around.outer(name) - homes.keys():
                    homes[outer], roots[outer] = real, roots[name]
                    holders.add(outer)
                    _note(found, roots[outer], around, outer, real)
        if not holders:
            break
        frontier = frozenset(holders)
    return found


MAX_HOLDERS = 3
"""How far outwards the models that hold a model are followed through the project's files."""


def _mentioning(
    index: ProjectIndex, file: SourceFile, names: frozenset[str], seen: dict[str, Surroundings]
) -> Iterator[tuple[str, Surroundings]]:
    """The other files that may call one of the names."""
    words = re.compile(b"|".join(rb"\b%s\s*\(" % name.encode() for name in sorted(names)))
    for real in index.files(file.real)[:MAX_FILES]:
        data = index.data(real) if real != file.real and real.endswith(".py") else None
        if data is None or b"torch" not in data or words.search(data) is None:
            continue
        if real not in seen:
            other = index.parse(real)
            seen[real] = read_surroundings(other.tree) if other is not None else Surroundings()
        yield real, seen[real]


def _is_from(index: ProjectIndex, other: SourceFile, name: str, homes: dict[str, str]) -> bool:
    """Whether a name means in a file what it means at its home: another class may have the same name."""
    found = index.definition(other, name)
    return found is not None and found[0].real == homes[name]


def _note(found: Surroundings, makers: frozenset[str], around: Surroundings, name: str, real: str) -> None:
    """Pass on what the file at ``real`` says of ``name`` to the makers it stands for."""
    for maker in makers:
        if name in makers and around.optimizers.get(name):
            found.optimizers.setdefault(maker, set()).update(around.optimizers[name])
        for one in around.initialised.get(name, ()):
            followed = one.function and (name in makers or one.how == "apply")
            found.initialised.setdefault(maker, set()).add(replace(one, home=real) if followed else _UNNAMED)


def placed(
    models: Sequence[ModelFacts],
    around: Surroundings,
    project: Surroundings | None = None,
    module: ModuleEnv | None = None,
    homes: Homes | None = None,
) -> tuple[ModelFacts, ...]:
    """The models with what their file says of them, and where it is silent the rest of the project.

    With ``module``, the functions that are said to initialise a model are followed: one that changes no weight
    (it looks for other layers) initialises nothing.
    """
    out = []
    other = project or Surroundings()
    for model in models:
        maker = model.qualname
        families = around.optimizers.get(maker) or around.families or other.optimizers.get(maker) or set()
        optimizer: Optimizer = next(iter(families)) if len(families) == 1 else "none"
        outer = around.outer(maker)
        done = {
            *around.initialised.get(maker, ()),
            *(i if i.how == "apply" else _UNNAMED for cls in outer for i in around.initialised.get(cls, ())),
            *_once(i for cls in (maker, *outer) for i in other.initialised.get(cls, ())),
        }
        ordered = sorted(done, key=lambda i: (i.home, i.function, i.how))
        read: ModelFacts | None = model
        if ordered:
            read = with_initialisers(module, model, ordered, homes) if module is not None else None
        out.append(
            replace(
                read or model,
                optimizer=optimizer,
                initialised_elsewhere=read is None,
                derivatives_taken=around.derivatives_taken,
            )
        )
    return tuple(out)


def _once(found: Iterable[Initialiser]) -> Iterator[Initialiser]:
    """What other files do, once where several do the same; unnamed where they do different things."""
    several = sorted(found, key=lambda i: i.home)
    named = {(i.function, i.how) for i in several}
    yield from several[:1] if len(named) == 1 else [_UNNAMED] if several else []


def _scopes(tree: ast.Module) -> Iterator[list[ast.AST]]:
    """The nodes of the module's own statements, then those of each class and each top-level function."""
    own: list[ast.AST] = []
    for stmt in tree.body:
        if isinstance(stmt, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield list(_in_order(stmt))
        else:
            own.extend(_in_order(stmt))
    yield own


def _in_order(node: ast.AST) -> list[ast.AST]:
    """The node and all in it, each ahead of what is inside of it, as the text has them."""
    found: list[ast.AST] = []
    todo = [node]
    while todo:
        here = todo.pop()
        found.append(here)
        inner: list[ast.AST] = []
        for name in here._fields:
            value = getattr(here, name, None)
            if isinstance(value, ast.AST):
                inner.append(value)
            elif isinstance(value, list):
                inner.extend(v for v in value if isinstance(v, ast.AST))
        todo.extend(reversed(inner))
    return found


def _read_scope(nodes: Sequence[ast.AST], found: Surroundings) -> None:
    makers: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            name = _dotted(node.targets[0])
            maker = name if _is_sequential(node.value) else _maker(node.value, makers)
            maker = found.factories.get(maker, maker) if maker else None
            if name and maker:
                makers[name] = maker
        if isinstance(node, ast.Call):
            _read_call(node, makers, found)
    _read_loads(nodes, makers, found)
    _read_loops(nodes, makers, found)


def _read_loops(nodes: Sequence[ast.AST], makers: dict[str, str], found: Surroundings) -> None:
    """``for p in model.parameters(): nn.init.xavier_uniform_(p)``, outside of the class."""
    for node in nodes:
        if isinstance(node, ast.For):
            sources = [node.iter]
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
            sources = [g.iter for g in node.generators]
        else:
            continue
        if not any(_initialising(n) for n in _in_order(node)):
            continue
        for part in (p for source in sources for p in ast.walk(source)):
            name = _dotted(part)
            if name in makers:
                found.initialised.setdefault(makers[name], set()).add(_UNNAMED)


def _initialising(node: ast.AST) -> bool:
    """Whether a node writes weights: ``nn.init.xavier_uniform_(p)``, ``p.data.normal_()``, ``m.weight /= s``."""
    if isinstance(node, ast.AugAssign):
        return isinstance(node.target, ast.Attribute) and node.target.attr == "weight"
    if not isinstance(node, ast.Call):
        return False
    short = _short(node.func)
    if short.rstrip("_") + "_" in INITIALISERS and short.endswith("_"):
        return True
    if short == "apply" and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
        return True
    return short in _LOADING_METHODS


def _factories(tree: ast.Module) -> tuple[dict[str, str], frozenset[str], frozenset[str]]:
    """Functions that return a model (and whose), what writes weights, and all functions of the file."""
    made: dict[str, str] = {}
    known: set[str] = set()
    writing: set[str] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.ClassDef):
            inits = [n for n in function.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
            if any(_initialising(n) for init in inits for n in _in_order(init)):
                writing.add(function.name)  # a wrapper may initialise what it is given
            continue
        if not isinstance(function, ast.FunctionDef):
            continue
        known.add(function.name)
        nodes = list(_in_order(function))
        if any(_initialising(n) for n in nodes):
            writing.add(function.name)
        local: dict[str, str] = {}
        for n in nodes:
            if isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name):
                maker = _maker(n.value, local)
                if maker:
                    local[n.targets[0].id] = maker
            elif isinstance(n, ast.Return) and n.value is not None:
                maker = _maker(n.value, local)
                if maker and maker[:1].isupper():
                    made[function.name] = maker
    return made, frozenset(writing), frozenset(known)


def _read_call(node: ast.Call, makers: dict[str, str], found: Surroundings) -> None:
    short = _short(node.func)
    family = _family(short)
    if family is not None and (node.args or node.keywords):
        found.families.add(family)
        for model in _models_in([*node.args, *(k.value for k in node.keywords)]):
            if model in makers:
                found.optimizers.setdefault(makers[model], set()).add(family)
    if short == "grad" or any(k.arg == "create_graph" for k in node.keywords):
        found.derivatives_taken = True
    owner = _dotted(node.func.value) if isinstance(node.func, ast.Attribute) else None
    if short == "apply" and owner in makers:
        named = node.args[0].id if node.args and isinstance(node.args[0], ast.Name) else ""
        found.initialised.setdefault(makers[owner], set()).add(Initialiser(named, "apply"))
    whole = _held_by(owner, makers)
    if whole is not None and (short in _WHOLE or short in _LOADING_METHODS):
        found.initialised.setdefault(makers[whole], set()).add(_UNNAMED)  # `model.trunk.apply(f)`: a part of it
    if owner in makers and short in found.methods.get(makers[owner], frozenset()):
        found.initialised.setdefault(makers[owner], set()).add(_method_call(short, node))
    named_so = any(word in short.lower() for word in _INITIALISING_WORDS) and not short[:1].isupper()
    if isinstance(node.func, ast.Name) and short[:1].islower() and short not in found.functions | _HARMLESS:
        # A function of another file gets the new model: what it gives back may have other weights.
        for arg in node.args:
            if isinstance(arg, ast.Call) and (given := _maker(arg, {})) is not None and given[:1].isupper():
                alone = len(node.args) == 1 and not node.keywords
                found.initialised.setdefault(given, set()).add(Initialiser(short) if alone else _UNNAMED)
    if short in found.writing or named_so:
        for arg in node.args:
            if (made := _maker(arg, makers)) is not None and isinstance(arg, ast.Call):
                alone = isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords
                found.initialised.setdefault(made, set()).add(Initialiser(short) if alone else _UNNAMED)
            for part in ast.walk(arg):
                name = _dotted(part)
                if name in makers:
                    known = isinstance(node.func, ast.Name) and part is arg and len(node.args) == 1
                    initialiser = Initialiser(short) if known else _UNNAMED
                    found.initialised.setdefault(makers[name], set()).add(initialiser)


def _method_call(name: str, node: ast.Call) -> Initialiser:
    """``model.weight_init(mean=0.0, std=0.02)``: with its arguments, where these are literals."""
    given = [*node.args, *(k.value for k in node.keywords)]
    if any(k.arg is None for k in node.keywords) or not all(_is_literal(value) for value in given):
        return _UNNAMED
    args = [*map(ast.unparse, node.args), *(f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords)]
    return Initialiser(f"{name}({', '.join(args)})" if args else name, "method")


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def _writes(node: ast.AST, writing: frozenset[str]) -> bool:
    """Whether a statement of a method initialises, itself or through a function of the file."""
    return _initialising(node) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in writing
    )


_WHOLE = frozenset({"apply", "init_weights", "reset_parameters", "_init_weights"})


def _held_by(owner: str | None, makers: dict[str, str]) -> str | None:
    """The name of the model that an attribute chain begins with: ``model`` of ``model.trunk``."""
    while owner and "." in owner:
        owner = owner.rpartition(".")[0]
        if owner in makers:
            return owner
    return None


def _read_loads(nodes: Sequence[ast.AST], makers: dict[str, str], found: Surroundings) -> None:
    """Weights loaded unconditionally, before anything in the scope is trained."""
    conditional = {id(n) for node in nodes if isinstance(node, (ast.If, ast.IfExp, ast.Try)) for n in ast.walk(node)}
    trained = False
    for node in nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "backward":
            trained = True
        owner = _dotted(node.func.value)
        given = node.args[0] if node.args else None
        copied = isinstance(given, ast.Call) and _short(given.func) == "state_dict"
        if copied and isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute):
            source = makers.get(_dotted(given.func.value) or "")
            if source is not None and source == makers.get(owner or ""):
                continue  # a target network starts as a copy of its twin
        if node.func.attr in _LOADING_METHODS and owner in makers and not trained and id(node) not in conditional:
            found.initialised.setdefault(makers[owner], set()).add(_UNNAMED)


def _maker(value: ast.expr, makers: dict[str, str]) -> str | None:
    """``Net(...)``, ``Net(...).to(device)``, ``nn.DataParallel(net)``, another name of the same object."""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _FLUENT:
        value = value.func.value
    name = _dotted(value)
    if name is not None:
        return makers.get(name)
    if isinstance(value, ast.Call):
        if isinstance(value.func, ast.Name):
            if value.func.id in ("DataParallel", "DistributedDataParallel", "DDP") and value.args:
                return makers.get(_dotted(value.args[0]) or "")
            return value.func.id
        if _short(value.func) in ("DataParallel", "DistributedDataParallel", "compile") and value.args:
            return makers.get(_dotted(value.args[0]) or "")
        if isinstance(value.func, ast.Attribute) and value.func.attr[:1].isupper():
            return value.func.attr
    return None


_FLUENT = frozenset({"to", "cuda", "cpu", "float", "double", "half", "train", "eval"})


def _is_sequential(value: ast.expr) -> bool:
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _FLUENT:
        value = value.func.value
    return isinstance(value, ast.Call) and _short(value.func) == "Sequential"


def _models_in(args: Sequence[ast.expr]) -> Iterator[str]:
    """Names whose ``parameters()`` are taken."""
    for arg in args:
        for part in ast.walk(arg):
            if (
                isinstance(part, ast.Call)
                and isinstance(part.func, ast.Attribute)
                and part.func.attr in ("parameters", "named_parameters")
            ):
                name = _dotted(part.func.value)
                if name:
                    yield name


def _family(short: str) -> Optimizer | None:
    if short in SGD_FAMILY:
        return "sgd"
    return "adam" if short in ADAM_FAMILY else None


def _short(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _dotted(node: ast.AST) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])
