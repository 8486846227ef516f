"""Serve the sliced modules of a request to each other, and stand in for imports that fail.

A slice is a file's own text with everything blanked out that the experiment does not need, so line numbers here are
line numbers in the user's file. Sliced code imports through :meth:`SlicedModules.import_hook`: project modules come
from the slices, everything else from the interpreter, and what cannot be imported (another project file, a package
that is not installed) becomes whatever the ``missing`` callback says. An import inside a ``try`` that handles
``ImportError`` fails as it would outside: the program has its own answer.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import linecache
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

Missing = Callable[[str, str, str], Any]
"""``missing(module, name, why)`` -> the value to bind; ``name`` is ``""`` where the module itself is imported."""
Compile = Callable[[str, str, str], types.CodeType]
"""``compile(source, filename, module name)`` -> the code to run; a place for rewriting."""

FILE_PREFIX = "<sliced> "
"""Starts the file name of sliced code, before the path in the project. No real file can be meant."""

_PROTECTING = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def filename_of(path: str) -> str:
    """The file name that frames of the slice of ``path`` carry."""
    return FILE_PREFIX + path


def plain_compile(source: str, filename: str, name: str) -> types.CodeType:
    """Compile a slice as it is."""
    return compile(source, filename, "exec", dont_inherit=True)


class SlicedModules:
    """The modules of one request. Use as a context manager, then :meth:`load` them by name."""

    def __init__(
        self, modules: Sequence[Mapping[str, Any]], missing: Missing, compile_slice: Compile = plain_compile
    ) -> None:
        self._slices: Dict[str, Mapping[str, Any]] = {str(m["name"]): m for m in modules}
        self._packages = {parent for name in self._slices for parent in _parents(name)}
        self._loaded: Dict[str, types.ModuleType] = {}
        self._protected: Dict[str, List[Tuple[int, int]]] = {}
        self._missing = missing
        self._compile = compile_slice
        self._finder = _Finder(self)
        self._registered: List[str] = []
        self.loading = 0
        """How many module bodies are running right now."""

    def __enter__(self) -> SlicedModules:
        sys.meta_path.insert(0, self._finder)
        return self

    def __exit__(self, *error: object) -> None:
        sys.meta_path.remove(self._finder)
        for name in self._registered:
            sys.modules.pop(name, None)

    @property
    def filenames(self) -> Dict[str, str]:
        """File name of sliced code -> path in the project."""
        return {filename_of(str(m["path"])): str(m["path"]) for m in self._slices.values()}

    def holds(self, name: str) -> bool:
        """Whether ``name`` is a sliced module or a package above one."""
        return name in self._slices or name in self._packages

    def load(self, name: str) -> types.ModuleType:
        """The module ``name``, run if it has not been yet. Whatever its statements raise passes through."""
        if name in self._loaded:
            return self._loaded[name]
        parent, _, child = name.rpartition(".")
        if parent:
            package = self.load(parent)
            if name in self._loaded:  # the package's own statements imported it
                return self._loaded[name]
        module = self._make(name)
        if name in self._slices:
            self._run(module, self._slices[name])
        if parent:
            setattr(package, child, module)
        return module

    def reload(self, name: str) -> types.ModuleType:
        """Run the statements of ``name`` again, in a new module."""
        self.stale(name)
        return self.load(name)

    def stale(self, name: str) -> None:
        """Have the next :meth:`load` of ``name`` run its statements again."""
        self._loaded.pop(name, None)
        if name in self._registered:
            self._registered.remove(name)
            sys.modules.pop(name, None)

    @property
    def names(self) -> FrozenSet[str]:
        """The sliced modules."""
        return frozenset(self._slices)

    def callers_of(self, target: type) -> Iterator[type]:
        """Classes of the loaded slices whose text calls ``target``, itself or through a function beside them."""
        for name, entry in self._slices.items():
            module = self._loaded.get(name)
            if module is None or target.__name__ not in str(entry["source"]):
                continue
            body = ast.parse(str(entry["source"])).body
            makers = {target.__name__}
            for function in (n for n in [*body, *body] if isinstance(n, ast.FunctionDef)):
                if _calls(function, makers):
                    makers.add(function.name)
            for node in body:
                if isinstance(node, ast.ClassDef) and _calls(node, makers):
                    found = getattr(module, node.name, None)
                    if isinstance(found, type) and found is not target:
                        yield found

    def class_like(self, name: str) -> Optional[type]:
        """A class of the loaded slices whose name is ``name``, but for case and underscores."""
        wanted = name.replace("_", "").lower()
        for module_name in self._slices:
            for key, value in vars(self._loaded.get(module_name, types)).items():
                if isinstance(value, type) and key.lower() == wanted and value.__module__ in self._slices:
                    return value
        return None

    def _make(self, name: str) -> types.ModuleType:
        module = types.ModuleType(name)
        entry = self._slices.get(name, {"is_package": True})
        is_package = bool(entry.get("is_package")) or name in self._packages
        module.__spec__ = ModuleSpec(name, _Loader(module), is_package=is_package)
        module.__loader__ = module.__spec__.loader
        module.__package__ = name if is_package else name.rpartition(".")[0]
        if is_package:
            module.__path__ = []
        if name in self._slices:
            module.__file__ = filename_of(str(entry["path"]))
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self.import_hook}
        self._loaded[name] = module
        if name not in sys.modules:  # a project may well have a "types.py"; the libraries keep theirs
            sys.modules[name] = module
            self._registered.append(name)
        return module

    def _run(self, module: types.ModuleType, entry: Mapping[str, Any]) -> None:
        source, filename = str(entry["source"]), filename_of(str(entry["path"]))
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        self.loading += 1
        try:
            exec(self._compile(source, filename, module.__name__), module.__dict__)
        except BaseException:
            self._loaded.pop(module.__name__, None)
            raise
        finally:
            self.loading -= 1

    def import_hook(
        self,
        name: str,
        globals: Optional[Mapping[str, Any]] = None,
        locals: Optional[Mapping[str, Any]] = None,
        fromlist: Optional[Sequence[str]] = None,
        level: int = 0,
    ) -> Any:
        """What ``import`` means in sliced code; the signature is that of :func:`builtins.__import__`."""
        absolute = _absolute(name, globals, level)
        try:
            if self.holds(absolute):
                module: Any = self._import_slice(absolute, fromlist)
            else:
                module = importlib.__import__(name, globals, locals, tuple(fromlist or ()), level)
        except Exception as error:  # an installed package may raise anything when it is imported under confinement
            if self.holds(absolute) and not isinstance(error, ImportError):
                raise
            if self._handled_there(sys._getframe(1)):
                raise _as_import_error(error, absolute) from error
            return self._stand_in(absolute, fromlist, f"{type(error).__name__}: {error}")
        return self._complete(module, absolute, fromlist, sys._getframe(1))

    def _import_slice(self, absolute: str, fromlist: Optional[Sequence[str]]) -> types.ModuleType:
        module = self.load(absolute)
        for name in fromlist or ():
            submodule = f"{absolute}.{name}"
            if not hasattr(module, name) and self.holds(submodule):
                self.load(submodule)
        return module if fromlist else self.load(absolute.partition(".")[0])

    def _complete(self, module: Any, absolute: str, fromlist: Optional[Sequence[str]], frame: types.FrameType) -> Any:
        """``from package import name``: names that the package lacks are missing, too."""
        absent = [n for n in fromlist or () if n != "*" and not hasattr(module, n)]
        if not absent or self._handled_there(frame):
            return module
        # A namespace of its own: the module is not the experiment's to change.
        view = types.ModuleType(absolute)
        for name in fromlist or ():
            value = self._missing(absolute, name, "no such name") if name in absent else getattr(module, name, None)
            setattr(view, name, value)
        return view

    def _stand_in(self, absolute: str, fromlist: Optional[Sequence[str]], why: str) -> Any:
        """The value of a failed import statement, before its names are bound."""
        if not fromlist:
            # "import a.b" binds a, "import a.b as c" reads a.b: the callback's value must have attributes.
            top, _, rest = absolute.partition(".")
            if not rest or top not in sys.modules:
                return self._missing(top, "", why)
            view = types.ModuleType(top)
            view.__dict__.update(vars(sys.modules[top]))
            setattr(view, rest.partition(".")[0], self._missing(absolute, "", why))
            return view
        view = types.ModuleType(absolute)
        view.__dict__["__all__"] = []
        for name in fromlist:
            if name != "*":
                setattr(view, name, self._missing(absolute, name, why))
        return view

    def _handled_there(self, frame: types.FrameType) -> bool:
        """Whether the line that ``frame`` is at lies in a ``try`` that handles a failed import."""
        name = str(frame.f_globals.get("__name__"))
        if name not in self._slices:
            return False
        if name not in self._protected:
            self._protected[name] = _protected_lines(str(self._slices[name]["source"]))
        return any(first <= frame.f_lineno <= last for first, last in self._protected[name])


class _Finder(MetaPathFinder):
    """For ``importlib.import_module`` and the like: names that only the slices know."""

    def __init__(self, slices: SlicedModules) -> None:
        self._modules = slices

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Optional[types.ModuleType] = None
    ) -> Optional[ModuleSpec]:
        if not self._modules.holds(fullname):
            return None
        return self._modules.load(fullname).__spec__


class _Loader(Loader):
    """Hands out a module that has run already."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self.module

    def exec_module(self, module: types.ModuleType) -> None:
        """It ran when it was found."""

    def get_source(self, fullname: str) -> Optional[str]:
        """The slice's text, for ``inspect.getsource``."""
        lines = linecache.getlines(str(getattr(self.module, "__file__", "")))
        return "".join(lines) or None


def _calls(node: ast.AST, names: Set[str]) -> bool:
    """Whether a call of one of ``names`` stands anywhere under ``node``."""
    functions = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return any(getattr(f, "id", getattr(f, "attr", None)) in names for f in functions)


def _parents(name: str) -> List[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _absolute(name: str, globals: Optional[Mapping[str, Any]], level: int) -> str:
    """The absolute name of a possibly relative import."""
    if not level:
        return name
    package = str((globals or {}).get("__package__") or "")
    base = package.rsplit(".", level - 1)[0] if level > 1 else package
    return f"{base}.{name}".strip(".") if name else base


def _as_import_error(error: Exception, name: str) -> ImportError:
    if isinstance(error, ImportError):
        return error
    return ImportError(f"{name}: {type(error).__name__}: {error}", name=name)


def _protected_lines(source: str) -> List[Tuple[int, int]]:
    """First and last lines of the bodies of ``try`` statements that handle a failed import."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try):
            protects = any(_handles_import(h.type) for h in node.handlers)
        elif isinstance(node, ast.With):
            protects = any(_suppresses_import(i.context_expr) for i in node.items)
        else:
            continue
        if protects:
            found.append((node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno))
    return found


def _handles_import(caught: Optional[ast.expr]) -> bool:
    if caught is None:
        return True
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(n, ast.Name) and n.id in _PROTECTING for n in names)


def _suppresses_import(context: ast.expr) -> bool:
    return (
        isinstance(context, ast.Call)
        and "suppress" in ast.unparse(context.func)
        and any(_handles_import(a) for a in context.args)
    )
