"""Slices: they run by themselves, hold nothing that trains or prints, and keep every line and column."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import random
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from gradlint.facts.index import ProjectIndex
from gradlint.probe.parts import Part
from gradlint.probe.slicing import Module, Slice, slice_for, slice_step, slice_variable

FORBIDDEN = "raise RuntimeError('must not run')"


class Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves sliced modules, and empty packages above them: what the worker does."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = {m["name"]: m for m in modules}
        self.parents = {n[:i] for n in self.modules for i, c in enumerate(n) if c == "."}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.modules and name not in self.parents:
            return None
        package = name in self.parents or self.modules[name]["is_package"]
        return importlib.util.spec_from_loader(name, self, is_package=package)

    def exec_module(self, module: ModuleType) -> None:
        found = self.modules.get(module.__name__)
        if found is not None:
            exec(compile(found["source"], found["path"], "exec"), module.__dict__)


def load(made: Slice) -> ModuleType:
    """Imports the slice's entry, with nothing of the project on the path."""
    finder = Modules(made.modules)
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(made.entry)
    finally:
        sys.meta_path.remove(finder)
        for name in finder.modules.keys() | finder.parents:
            sys.modules.pop(name, None)


def project(folder: Path, files: Mapping[str, str]) -> ProjectIndex:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(textwrap.dedent(text).replace("\\r\\n", "\r\n").encode())
    return ProjectIndex([folder])


def check_columns(index: ProjectIndex, made: Slice) -> None:
    """Every statement of a slice stands where it stands in its file, but for imports and what replaces headers."""
    for module in made.modules:
        file = index.parse(module["path"])
        assert file is not None
        before = file.text.split("\n")
        after = module["source"].split("\n")
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            if new.lstrip().startswith(("import ", "from ", "if 1:", "for ")) or new.strip() == "pass":
                continue
            for column, char in enumerate(new):
                filler = new.lstrip().startswith("0;") and column < len(new) - len(new.lstrip()) + 2
                assert filler or char.isspace() or old[column : column + 1] == char, (old, new)


def sliced(folder: Path, files: Mapping[str, str], path: str, *wanted: str) -> tuple[ModuleType, Slice]:
    index = project(folder, files)
    made = slice_for(index, str(folder / path), wanted)
    check_columns(index, made)
    return load(made), made


def text_of(made: Slice, module: str) -> str:
    return next(m["source"] for m in made.modules if m["name"] == module)


ONE_FILE = {
    "helpers and constants": """
        import os, sys as system
        WIDTH = 4
        UNUSED = 1 / 0
        def twice(x): return x * WIDTH
        class Net:
            size = twice(2)
        raise RuntimeError
        """,
    "a list filled by a loop and by calls": """
        LAYERS = []
        for i in range(3):
            LAYERS.append(i)
        LAYERS.extend([7])
        for i in range(10):
            1 / 0
        class Net:
            size = len(LAYERS) * 2
        """,
    "a dictionary filled by item": """
        TABLE = {}
        TABLE["a"] = 8
        OTHER = {}
        OTHER["b"] = 1 / 0
        class Net:
            size = TABLE["a"]
        """,
    "an attribute set from outside": """
        class Net: pass
        Net.size = 8
        """,
    "a decorator, a default and a base": """
        def mark(cls):
            cls.size = DEFAULT()
            return cls
        def make(value=8): return value
        DEFAULT = make
        class Base: pass
        @mark
        class Net(Base): pass
        """,
    "several on a line": """
        a = 1; 1 / 0
        1 / 0; b = 3; c = 4; 1 / 0
        x = 5; y = 6
        class Net: size = a + b + c
        """,
    "a decorator in brackets, with a comment": """
        def mark(n):
            def inner(cls):
                cls.size = n
                return cls
            return inner
        @mark(
            # why eight
            8
        )
        class Net:
            pass
        """,
    "names that are local elsewhere": """
        def Loss(x): return x
        class Net:
            def f(self, x):
                loss = Loss(x)
                epoch = [epoch for epoch in range(3)]
                return loss
            size = 8
        for epoch in range(2):
            loss = 1 / 0
        """,
    "an if at the top": """
        import sys
        if sys.version_info >= (3, 0):
            def helper(): return 8
            print(1 / 0)
        else:
            def helper(): return 1 / 0
        class Net: size = helper()
        """,
    "elif": """
        A = 2
        if A == 1:
            size = 1
        elif A == 2:
            size = 8
            print(1 / 0)
        else:
            size = 3
        class Net: size = size
        """,
    "try import": """
        try:
            import no_such_module_anywhere as fast
        except ImportError:
            fast = None
        class Net: size = 8 if fast is None else 1
        """,
    "a future import and annotations": """
        from __future__ import annotations
        class Net:
            def f(self, x: Undefined) -> Missing: ...
            size = 8
        """,
    "annotations that run": """
        import typing
        Alias = typing.Optional[int]
        class Net:
            def f(self, x: Alias) -> "Missing": ...
            size = 8
        """,
    "a registry in one file": """
        MODELS = {}
        def register(f):
            MODELS[f.__name__] = f
            return f
        @register
        def small(): return 4
        @register
        def large(): return 8
        class Net: size = MODELS["large"]()
        """,
    "a tab, a form feed and a string over lines": """
        TEXT = '''
        not code = 1 / 0
        \tx
        '''
        \f
        class Net:
        \tsize = 8 if "code" in TEXT else 0
        """,
    "letters beyond ASCII": """
        é = "ünïcode"; b = 8; 1 / 0
        class Net: size = b; name = "日本"
        """,
    "a line that goes on": """
        a = 3; \\
        b = 5
        class Net: size = \\
            b + 3
        """,
    "globals by name": """
        class Part: size = 8
        def get(name): return globals()[name]
        class Net: size = get("Pa" + "rt").size
        """,
    "the main block": """
        class Net: size = 8
        if __name__ == "__main__":
            1 / 0
        """,
    "a name that only the main block binds": """
        class Net:
            @property
            def width(self): return WIDTH
        def size(): return 8
        Net.size = size()
        if __name__ == "__main__":
            WIDTH = 3
            1 / 0
        """,
    "carriage returns": "WIDTH = 8\r\n1 / 0 if False else None\r\nclass Net:\r\n    size = WIDTH\r\n",
    "a nested class and a comprehension": """
        N = 4
        class Net:
            class Inner:
                values = [k for k in range(3)]
            size = sum(1 for _ in range(N)) * 2
        """,
    "a walrus and a lambda": """
        scale = 2
        pick = lambda k, scale=scale: k * scale
        class Net:
            size = (width := pick(4))
        """,
    "match": """
        KIND = "big"
        match KIND:
            case "big":
                WIDTH = 8
            case _:
                WIDTH = 1
        class Net: size = WIDTH
        """,
    "augmented": """
        WIDTH = 3
        WIDTH += 5
        class Net: size = WIDTH
        """,
    "argparse": """
        import argparse
        parser = argparse.ArgumentParser()
        group = parser.add_argument_group("g")
        group.add_argument("--width", default=8)
        args, _ = parser.parse_known_args([])
        print(1 / 0) if args.width == 9 else None
        class Net: size = args.width
        """,
}


@pytest.mark.parametrize("text", ONE_FILE.values(), ids=ONE_FILE.keys())
def test_one_file(tmp_path: Path, text: str) -> None:
    module, made = sliced(tmp_path, {"net.py": text}, "net.py", "Net")
    assert module.Net.size == 8
    assert made.missing == ()


AWKWARD = '''a = 1; b = (2,
 3); c = """x
y"""; d = 4; \\
  e = 5
if a: b = 1; c = 2; print(b); d = """
"""; e = 3
elif b: f = 1;
else: g = 2; h = 3
é = "ü"; k = "日本"; l = 3; import os, sys; from os import (path,
   sep); m = 1
try: import json; import re as r, io
except ImportError: json = None; r = 1
@(
  print
)
class A:
\tx = """
  y""" ; z = 2
if b:
    x = 1; y = (1,
2); z = 3
    if c: w = 1
'''


@pytest.mark.parametrize("seed", range(60))
def test_any_half_of_an_awkward_file(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    file = project(tmp_path, {"a.py": AWKWARD}).parse(tmp_path / "a.py")
    assert file is not None
    part = Part(file)
    part.kept.update((unit, None) for unit in part.units if chance.random() < 0.5)
    for node in (n for unit in part.kept for n in unit.imports):
        part.needs[node] = {a.asname or a.name for a in node.names if chance.random() < 0.5}
    source = part.source()
    assert source.count("\n") == file.text.count("\n")
    left = {(n.lineno, ast.dump(n)) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt)}
    assert left >= {(u.node.lineno, ast.dump(u.node)) for u in part.kept if not u.imports}


MANY_FILES = {
    "relative imports": {
        "pkg/__init__.py": FORBIDDEN,
        "pkg/net.py": "from .parts import Block, Other\nfrom . import consts\nclass Net(Block): size = consts.SIZE",
        "pkg/parts.py": "import json\nclass Block: pass\nclass Other: x = 1 / 0\n",
        "pkg/consts.py": "SIZE = 8\nBAD = 1 / 0\n",
    },
    "re-exports": {
        "pkg/__init__.py": "",
        "pkg/net.py": "from pkg.layers import Block, Bad\nclass Net(Block): pass",
        "pkg/layers/__init__.py": "from .block import Block\nfrom .bad import Bad\n",
        "pkg/layers/block.py": "class Block: size = 8",
        "pkg/layers/bad.py": FORBIDDEN,
    },
    "a star import": {
        "pkg/__init__.py": "",
        "pkg/net.py": "from .all import *\nfrom .low import _two\nclass Net: size = width() + _two",
        "pkg/all.py": "from .low import *\n__all__ = ['width']\n__all__ += []\n",
        "pkg/low.py": "def width(): return 6\n_two = 2\nbad = lambda: 1 / 0\n1 / 0 if False else 0",
    },
    "a module used as an object": {
        "net.py": "import models.parts as parts\nimport models.more\nclass Net(parts.Block): size = models.more.size()",
        "models/parts.py": f"class Block: pass\n{FORBIDDEN}",
        "models/more.py": "from .parts import Block\ndef size(): return 8\nx = 1 / 0",
    },
    "scripts beside each other": {
        "train.py": "from net import Net\n1 / 0",
        "net.py": f"from utils import size\nclass Net: size = size(4)\n{FORBIDDEN}",
        "utils.py": "import os\ndef size(n): return n * 2\nos.makedirs(1)",
    },
    "a source layout": {
        "pyproject.toml": "",
        "src/pkg/__init__.py": FORBIDDEN,
        "src/pkg/a.py": "SIZE = 8",
        "net.py": "from pkg.a import SIZE\nclass Net: size = SIZE",
    },
    "a circle": {
        "pkg/__init__.py": "",
        "pkg/net.py": "class Net: size = 8\nfrom .user import helper\nprint(helper)",
        "pkg/user.py": "from .net import Net\ndef helper(): return Net",
    },
    "an import inside a method": {
        "pkg/__init__.py": "",
        "pkg/net.py": "class Net:\n  def make(self):\n    from .late import Part\n    return Part()\n  size = 8",
        "pkg/late.py": "class Part: pass\n1 / 0",
    },
    "a try around a project import": {
        "pkg/__init__.py": "",
        "pkg/net.py": "try:\n  from .fast import size, bad\nexcept ImportError:\n  size = 1\nclass Net: size = size",
        "pkg/fast.py": "size = 8\nbad = 1 / 0",
    },
    "type checking": {
        "pkg/__init__.py": "",
        "pkg/net.py": """
            from __future__ import annotations
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from .config import Config
            class Net:
                def __init__(self, config: Config) -> None: ...
                size = 8
            """,
        "pkg/config.py": "from .net import Net\nclass Config: net = Net",
    },
    "a package that loads lazily": {
        "net.py": "from lazy import Block\nclass Net(Block): pass",
        "lazy/__init__.py": """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING or False:
                from .block import Block
                from .bad import Bad
            else:
                import sys
                sys.modules[__name__] = 1 / 0
            """,
        "lazy/block.py": "class Block: size = 8",
        "lazy/bad.py": FORBIDDEN,
    },
    "a registry in another file": {
        "pkg/__init__.py": "",
        "pkg/registry.py": """
            REGISTRY = {}
            REGISTRY['b'] = 8
            def register(f):
                REGISTRY[f.__name__] = f
                return f
            """,
        "pkg/net.py": "from .registry import REGISTRY, register\n@register\nclass Net: size = REGISTRY['b']",
    },
    "a file that does not parse": {
        "net.py": "from broken import nothing\nfrom sizes import SIZE\nclass Net: size = SIZE",
        "broken.py": "def f(:\n",
        "sizes.py": "SIZE = 8",
    },
    "an alias of an imported class": {
        "pkg/__init__.py": "from .a import A as Exported",
        "pkg/a.py": "class A: size = 8",
        "net.py": "import pkg\nNet = pkg.Exported",
    },
}


@pytest.mark.parametrize("files", MANY_FILES.values(), ids=MANY_FILES.keys())
def test_many_files(tmp_path: Path, files: Mapping[str, str]) -> None:
    entry = next(name for name in files if name.endswith("net.py"))
    module, made = sliced(tmp_path, files, entry, "Net")
    assert module.Net.size == 8
    assert made.missing == ()


def test_an_inner_import_finds_its_module(tmp_path: Path) -> None:
    index = project(tmp_path, MANY_FILES["an import inside a method"])
    made = slice_for(index, str(tmp_path / "pkg/net.py"), ["Net"])
    assert {m["name"] for m in made.modules} >= {"pkg.net", "pkg.late"}
    assert "1 / 0" not in text_of(made, "pkg.late")


def test_missing_names_are_told(tmp_path: Path) -> None:
    index = project(tmp_path, {"net.py": "class Net:\n    def forward(self, x): return nowhere(x)\n"})
    assert slice_for(index, str(tmp_path / "net.py"), ["Net"]).missing == ("net.nowhere",)
    assert slice_for(index, str(tmp_path / "net.py"), ["Absent"]).missing == ("net.Absent",)
    assert slice_for(index, str(tmp_path / "absent.py"), ["Net"]) == Slice((), "", ("Net",))


def test_imports_are_narrowed_on_their_first_line(tmp_path: Path) -> None:
    text = "from os.path import (\n    join,  # used\n    split,\n)\nimport json, sys\nclass Net: a = join, sys\n"
    made = slice_for(project(tmp_path, {"net.py": text}), str(tmp_path / "net.py"), ["Net"])
    assert made.modules[0]["source"] == "from os.path import join\n\n\n\nimport sys\nclass Net: a = join, sys\n"


def test_a_module_is_plain_data(tmp_path: Path) -> None:
    index = project(tmp_path, {"pkg/__init__.py": "class Net: pass"})
    made = slice_for(index, str(tmp_path / "pkg/__init__.py"), ["Net"])
    assert made.modules == (
        {
            "name": "pkg",
            "path": str(tmp_path / "pkg/__init__.py"),
            "source": "class Net: pass",
            "package": "pkg",
            "is_package": True,
        },
    )


LOCALS = {
    "a list and a loop": """
        import json
        def main():
            print(1 / 0)
            layers = []
            data = 1 / 0
            for k in range(8):
                layers.append(k)
            net = len(layers)
            for epoch in range(3):
                net.step()
            return net
        """,
    "parameters with defaults": """
        def main(width=2, depth=4, *rest, verbose=False):
            if verbose:
                return 1 / 0
            net = width * depth + len(rest)
        """,
    "parameters from a call": """
        DEPTH = 2
        def build(width, depth):
            size = width * depth
            net = size
            return net
        if __name__ == "__main__":
            build(4, depth=DEPTH)
        """,
    "a branch": """
        def main(kind="b"):
            if kind == "a":
                net = 1
            elif kind == "b":
                net = 8
            else:
                return None
            1 / 0
        """,
    "an early return": """
        def main(kind="b"):
            for k in range(9):
                net = k
                if k == 9:
                    return net
            1 / 0
        """,
    "a function in a function": """
        def outer(base=5):
            unused = 1 / 0
            extra = base - 2
            def inner(more):
                net = more + extra
                return net
            return inner(base)
        """,
    "initialised afterwards": """
        def main():
            net = []
            init(net)
            train(net)
            net.append(1)
        def init(net): net.append(8)
        """,
    "a helper of the module and a local import": """
        def double(x): return 2 * x
        def main():
            from math import sqrt
            net = double(int(sqrt(16)))
            1 / 0
        """,
    "in a loop that trains": """
        def main(model=None):
            for seed in [4]:
                net = seed * 2
                model.step(1 / 0)
                model.backward()
        """,
    "rebound": """
        def main():
            net = 1 / 0
            net = 3
            net = net + 5
        """,
    "in a branch of the module": """
        if True:
            class Maker:
                @staticmethod
                def main(): net = 8; return net
        """,
}


@pytest.mark.parametrize("text", LOCALS.values(), ids=LOCALS.keys())
def test_a_local_value(tmp_path: Path, text: str) -> None:
    index = project(tmp_path, {"train.py": text})
    tree = ast.parse(textwrap.dedent(text))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and "net =" in ast.unparse(n)]
    scope = {"a function in a function": "outer.<locals>.inner", "in a branch of the module": "Maker.main"}
    name = next((s for k, s in scope.items() if LOCALS[k] == text), functions[0].name)
    made = slice_variable(index, str(tmp_path / "train.py"), name, "net")
    check_columns(index, made)
    assert made.missing == ()
    found = load(made).net
    assert (found[0] if isinstance(found, list) else found) == 8


def test_a_parameter_without_a_value_is_missing(tmp_path: Path) -> None:
    index = project(tmp_path, {"train.py": "def main(width):\n    net = width * 2\n"})
    assert slice_variable(index, str(tmp_path / "train.py"), "main", "net").missing == ("train.width",)
    assert slice_variable(index, str(tmp_path / "train.py"), "main", "other").missing == ("train.other",)
    assert slice_variable(index, str(tmp_path / "train.py"), "nowhere", "net").missing == ("train.net",)


STEPS = """
    import json, os
    import matplotlib.pyplot as plt
    from helpers import clip, unused

    def loader(): return [1]
    def orphan(): pass

    class Trainer:
        def fit(self):
            for x in loader():
                clip(self.net(x))

    def train(net, optimizer):
        log(LIMIT)
        clip(net)

    def log(x): pass

    LIMIT = 5.0
    os.makedirs("out", exist_ok=True)
    print("starting")
    if __name__ == "__main__":
        net = 3
        LIMITS = [1]
        for x in loader():
            train(net, None)
        plt.show()
    """


def step_text(folder: Path, region: str) -> str:
    index = project(folder, {"train.py": STEPS, "helpers.py": "def clip(x): pass\ndef unused(): pass\n"})
    made = slice_step(index, str(folder / "train.py"), region)
    check_columns(index, made)
    for module in made.modules:
        compile(module["source"], module["path"], "exec")
    assert made.missing == ()
    return text_of(made, "train")


def test_the_step_of_a_function(tmp_path: Path) -> None:
    text = step_text(tmp_path, "train")
    assert "def train" in text
    assert "LIMIT = 5.0" in text
    assert "def log" in text
    assert "from helpers import clip\n" in text
    for gone in ("Trainer", "orphan", "print", "makedirs", "__main__", "plt"):
        assert gone not in text


def test_the_step_of_a_method_keeps_its_class(tmp_path: Path) -> None:
    text = step_text(tmp_path, "Trainer.fit")
    assert "class Trainer" in text
    assert "def loader" in text
    assert "def train" not in text


def test_the_step_of_a_module(tmp_path: Path) -> None:
    text = step_text(tmp_path, "")
    assert "train(net, None)" in text
    assert "if 1:" in text
    assert "def train" in text
    for gone in ("orphan", "Trainer", "print", "plt", "makedirs", "unused"):
        assert gone not in text


def test_an_edited_text_is_sliced_alike(tmp_path: Path) -> None:
    index = project(tmp_path, {"train.py": "A = 1\ndef step(): return A\n"})
    path = str(tmp_path / "train.py")
    edited = index.with_text(path, "A = 1\ndef step(): return A + 1\n")
    assert text_of(slice_step(edited, path, "step"), "train") == "A = 1\ndef step(): return A + 1\n"
    assert text_of(slice_step(index, path, "step"), "train") == "A = 1\ndef step(): return A\n"


def test_arguments_of_call_sites_can_be_evaluated_in_their_module(tmp_path: Path) -> None:
    files = {
        "net.py": "class Net:\n    def __init__(self, config, width): self.size = config.size + width\n",
        "train.py": "from net import Net\nclass Config: size = 5\ncfg = Config()\nnet = Net(cfg, width=3)\n1 / 0\n",
    }
    index = project(tmp_path, files)
    path = str(tmp_path / "net.py")
    calls = index.call_sites(path, "Net")
    made = slice_for(index, path, ["Net"], calls=calls)
    finder = Modules(made.modules)
    sys.meta_path.insert(0, finder)
    try:
        net = importlib.import_module("net").Net
        names = importlib.import_module("train").__dict__
        args = [eval(text, names) for text in calls[0].args]
        kwargs = {key: eval(text, names) for key, text in calls[0].kwargs.items()}
        assert net(*args, **kwargs).size == 8
    finally:
        sys.meta_path.remove(finder)
        for name in ("net", "train"):
            sys.modules.pop(name, None)
