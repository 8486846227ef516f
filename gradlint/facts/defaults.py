"""Values that a file's own configuration tells: argparse and click defaults, dataclass fields, dictionaries.

    parser.add_argument("--clip", type=float, default=5.0)
    args = parser.parse_args()                              ->  {"args.clip": "5.0"}
    config = {"optim": {"clip": 1.0}}                       ->  {"config['optim']['clip']": "1.0"}

Keys and values are source texts as ``ast.unparse`` writes them. Only values that are literals count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from gradlint.facts.index import ProjectIndex, SourceFile
from gradlint.facts.names import blocks, target_names

CONFIG_NAMES = ("args", "cfg", "config", "conf", "hparams", "opt", "opts", "params", "hps", "FLAGS")
_NAMESPACES = frozenset({"SimpleNamespace", "Namespace", "EasyDict", "edict", "AttrDict", "DotMap", "Munch", "Box"})
_LITERAL_NODES = (
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Dict,
    ast.Set,
    ast.UnaryOp,
    ast.BinOp,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
)
_MAX_TEXT = 300
_MAX_IMPORTERS = 8
_READ = re.compile(rf"\b({'|'.join(CONFIG_NAMES)})\.[A-Za-z_]\w*")
_CONFIGURES = (b"add_argument(", b"dataclass", b"Namespace(", b"Config")
Values = dict[str, str]


def is_literal(node: ast.AST) -> bool:
    """Constants, and lists, tuples, dictionaries and arithmetic of constants."""
    return all(isinstance(n, _LITERAL_NODES) for n in ast.walk(node))


def values(index: ProjectIndex, file: SourceFile) -> Values:
    """The values known of ``file``; what it imports from other files of the project included, one step deep."""
    cached: Values | None = file.__dict__.get("_all_values")
    if cached is not None:
        return cached
    found = dict(_own(index, file))
    for name, source, original in _imports(index, file):
        other = _own(index, source)
        for key, value in other.items():
            if original is None:
                if key.isidentifier() or key.partition(".")[0] in source.names.top.bindings:
                    found.setdefault(f"{name}.{key}", value)
            elif key == original or key.startswith((f"{original}.", f"{original}[")):
                found.setdefault(name + key[len(original) :], value)
    file.__dict__["_all_values"] = found
    return _handed_over(index, file, found)


def _handed_over(index: ProjectIndex, file: SourceFile, found: Values) -> Values:
    """``args.clip`` where ``args`` is a parameter and the files that import this one parse the command line."""
    told = {key.partition(".")[0] for key in found}
    wanted = {m[0] for m in _READ.finditer(file.text) if m[1] not in told}
    if not wanted:
        return found
    stem = file.module.rpartition(".")[2].encode()
    read = 0
    for real in index.files(file.real):
        data = index.data(real) if real != file.real and real.endswith(".py") else None
        if data is None or stem not in data or not any(word in data for word in _CONFIGURES):
            continue
        other = index.parse(real)
        if other is None or file.real not in {f.real for _, f, _ in _imports(index, other)}:
            continue
        for key, value in _own(index, other).items():
            option = key.rpartition(".")[2]
            for name in wanted:
                if name.rpartition(".")[2] == option:
                    found.setdefault(name, value)
        read += 1
        if read >= _MAX_IMPORTERS:
            break
    return found


def _imports(index: ProjectIndex, file: SourceFile) -> Iterator[tuple[str, SourceFile, str | None]]:
    """Names bound to a module of the project (None) or to a name in one."""
    for name in list(file.names.top.bindings):
        binding = file.names.top.binding(name)
        if binding is None or not binding.is_import or not binding.target:
            continue
        inside = index.module(binding.target, file.real)
        if inside is not None:
            yield name, inside, None
            continue
        module, _, original = binding.target.rpartition(".")
        inside = index.module(module, file.real) if module else None
        if inside is not None and inside.real != file.real:
            yield name, inside, original


def _own(index: ProjectIndex, file: SourceFile) -> Values:
    cached: Values | None = file.__dict__.get("_values")
    if cached is None:
        cached = file.__dict__["_values"] = _Collector(index, file).collect()
    return cached


class _Collector:
    def __init__(self, index: ProjectIndex, file: SourceFile) -> None:
        self.index = index
        self.file = file
        self.options: Values = {}
        self.found: Values = {}
        self.holders: set[str] = set()
        """Names that hold the parsed command line."""

    def collect(self) -> Values:
        text = self.file.text
        if "add_argument" in text or ".option(" in text:
            self._command_line(list(ast.walk(self.file.tree)))
        for node in _statements(self.file.tree.body):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self._assigned(target, node.value)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._parameters(node)
        classes = [n for n in self.file.tree.body if isinstance(n, ast.ClassDef)]
        for cls in classes:
            for key, value in _fields(cls).items():
                self.found.setdefault(f"{cls.name}.{key}", value)
        holders = self.holders or ({"args", "opt", "FLAGS"} if self.options else set())
        for holder in holders:
            for key, value in self.options.items():
                self.found.setdefault(f"{holder}.{key}", value)
        return self.found

    def _command_line(self, nodes: list[ast.AST]) -> None:
        parsing: set[str] = set()
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if any(_called(n) in ("parse_args", "parse_known_args") for n in ast.walk(node)):
                    parsing.add(node.name)
                for decorator in node.decorator_list:
                    if _called(decorator) in ("option", "argument") and isinstance(decorator, ast.Call):
                        name, default = _option(decorator)
                        if name and default:
                            self.found.setdefault(name, default)
            elif isinstance(node, ast.Call) and _called(node) == "add_argument":
                name, default = _option(node)
                if name and default:
                    self.options[name] = default
        for node in nodes:
            if isinstance(node, ast.Assign) and _called(node.value) in ("parse_args", "parse_known_args", *parsing):
                for target in node.targets:
                    first = target.elts[0] if isinstance(target, (ast.Tuple, ast.List)) and target.elts else target
                    self.holders.add(ast.unparse(first))
                    self.holders.update(target_names(first))

    def _assigned(self, target: ast.expr, value: ast.expr) -> None:
        if not isinstance(target, (ast.Name, ast.Attribute)):
            return
        if isinstance(value, ast.Call) or (isinstance(value, ast.Dict) and value.keys):
            name = ast.unparse(target)
            for suffix, text in self._members(value):
                self.found.setdefault(name + suffix, text)

    def _members(self, value: ast.expr) -> Iterator[tuple[str, str]]:
        if isinstance(value, ast.Dict):
            yield from _items(value)
            return
        if not isinstance(value, ast.Call):
            return
        name = _called(value)
        if name in _NAMESPACES or name == "dict":
            pattern = ".{}" if name != "dict" else "['{}']"
            for keyword in value.keywords:
                if keyword.arg is not None:
                    yield from _named(pattern.format(keyword.arg), keyword.value)
                elif isinstance(keyword.value, ast.Dict):
                    yield from _attributes(keyword.value)
            for arg in value.args:
                if isinstance(arg, ast.Dict):
                    yield from _attributes(arg)
            return
        cls = self._class(value.func)
        if cls is not None:
            fields = _fields(cls)
            order = list(fields)
            for key, arg in [*zip(order, value.args, strict=False), *((k.arg or "", k.value) for k in value.keywords)]:
                if key in fields:
                    fields[key] = _text(arg) or ""
            yield from ((f".{key}", text) for key, text in fields.items() if text)

    def _parameters(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """``def train(cfg: TrainConfig)``; the fields of the class are what ``cfg`` holds unless told otherwise."""
        for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if arg.annotation is None or not isinstance(arg.annotation, (ast.Name, ast.Attribute)):
                continue
            cls = self._class(arg.annotation)
            for key, text in _fields(cls).items() if cls is not None else ():
                if text:
                    self.found.setdefault(f"{arg.arg}.{key}", text)

    def _class(self, expr: ast.expr) -> ast.ClassDef | None:
        if not isinstance(expr, (ast.Name, ast.Attribute)):
            return None
        found = self.index.definition(self.file, ast.unparse(expr))
        return found[1] if found is not None and isinstance(found[1], ast.ClassDef) else None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _statements(node.body)
        else:
            for block, _ in blocks(node):
                yield from _statements(block)


def _called(node: ast.AST) -> str:
    """The last name of what a call calls, ``""`` for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    func = node.func
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _text(node: ast.expr) -> str | None:
    if not is_literal(node):
        return None
    text = ast.unparse(node)
    return text if len(text) <= _MAX_TEXT else None


def _named(suffix: str, value: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(value, ast.Dict):
        yield from ((suffix + inner, text) for inner, text in _items(value))
    elif isinstance(value, ast.Call) and _called(value) == "dict":
        for keyword in value.keywords:
            yield from _named(f"{suffix}['{keyword.arg}']", keyword.value)
    else:
        text = _text(value)
        if text is not None:
            yield suffix, text


def _items(value: ast.Dict) -> Iterator[tuple[str, str]]:
    for key, item in zip(value.keys, value.values, strict=True):
        if isinstance(key, ast.Constant):
            yield from _named(f"[{key.value!r}]", item)


def _attributes(value: ast.Dict) -> Iterator[tuple[str, str]]:
    for key, item in zip(value.keys, value.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            if isinstance(item, ast.Dict):
                yield from ((f".{key.value}{inner}", text) for inner, text in _attributes(item))
            else:
                yield from _named(f".{key.value}", item)


def _option(call: ast.Call) -> tuple[str, str | None]:
    """The destination and the default of ``add_argument`` or ``click.option``."""
    flags = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    given = {k.arg: k.value for k in call.keywords if k.arg}
    long = [f for f in flags if f.startswith("--")]
    plain = [f for f in flags if not f.startswith("-")]
    name = (plain or long or flags or [""])[0]
    if isinstance(dest := given.get("dest"), ast.Constant):
        name = str(dest.value)
    name = name.partition("/")[0].lstrip("-").replace("-", "_")
    default = given.get("default")
    action = given.get("action")
    if default is None:
        flag = action.value if isinstance(action, ast.Constant) else None
        if flag == "store_true" or "is_flag" in given:
            return name, "False"
        return name, "True" if flag == "store_false" else None
    return name, _converted(default, given.get("type"))


def _converted(default: ast.expr, kind: ast.expr | None) -> str | None:
    """A default as the parser hands it on: a string goes through ``type``."""
    if isinstance(default, ast.Constant) and isinstance(default.value, str) and isinstance(kind, ast.Name):
        try:
            return repr({"int": int, "float": float}[kind.id](default.value))
        except (KeyError, ValueError):
            return _text(default)
    return _text(default)


def _fields(cls: ast.ClassDef) -> Values:
    """The literal defaults of a class's fields, in order; ``""`` for a field without one."""
    found: Values = {}
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = (_field_default(node.value) or "") if node.value is not None else ""
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = _text(node.value)
            if text is not None:
                found[node.targets[0].id] = text
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found.update(_set_in(node))
    return found


def _field_default(value: ast.expr) -> str | None:
    if isinstance(value, ast.Call) and _called(value) in ("field", "Field"):
        given = {k.arg: k.value for k in value.keywords}
        if "default" in given:
            return _text(given["default"])
        factory = given.get("default_factory")
        if isinstance(factory, ast.Lambda):
            return _text(factory.body)
        if isinstance(factory, ast.Name) and factory.id in ("list", "dict", "tuple"):
            return {"list": "[]", "dict": "{}", "tuple": "()"}[factory.id]
        return _text(value.args[0]) if value.args else None
    return _text(value)


def _set_in(init: ast.FunctionDef) -> Values:
    """``self.x = <literal>`` and ``self.x = parameter with a literal default`` of a constructor."""
    spec = init.args
    named = [*spec.posonlyargs, *spec.args]
    defaults: dict[str, ast.expr] = {}
    if spec.defaults:
        defaults = {a.arg: d for a, d in zip(named[-len(spec.defaults) :], spec.defaults, strict=True)}
    defaults.update({a.arg: d for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d is not None})
    found: Values = {}
    for node in init.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"):
            continue
        assert isinstance(node, ast.Assign)
        value = defaults.get(node.value.id) if isinstance(node.value, ast.Name) else node.value
        text = _text(value) if value is not None else None
        if text is not None:
            found[target.attr] = text
    return found
