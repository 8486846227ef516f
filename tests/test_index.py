"""The project index: names, modules and files, re-exports, call sites, configured values."""

from __future__ import annotations

import ast
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from gradlint.facts.index import ProjectIndex
from gradlint.facts.names import Names, canonical


def project(folder: Path, files: Mapping[str, str]) -> ProjectIndex:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return ProjectIndex([folder])


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


NAMES = """
import torch, torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_ as clip
from torch.nn.utils import clip_grad as cg
from .x import y
later = nn.utils.clip_grad_norm_
gone = nn
gone = 3
try:
    from apex import amp
except ImportError:
    amp = None
class A(nn.Module):
    def f(self, F):
        def g(): pass
        import torch.optim as opt
        local = opt.adam.Adam
        for nn in []: pass
        unknown = opt.SGD if F else opt.Adam
def clip_all():
    global clip
    clip = print
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("F.relu", "torch.nn.functional.relu"),
        ("nn.Linear", "torch.nn.Linear"),
        ("cg.clip_grad_norm_", "torch.nn.utils.clip_grad_norm_"),
        ("later", "torch.nn.utils.clip_grad_norm_"),
        ("y", "pkg.x.y"),
        ("gone.Linear", None),
        ("amp.initialize", "apex.amp.initialize"),
        ("A", "pkg.m.A"),
        ("print", "builtins.print"),
        ("clip", "builtins.print"),
        ("nowhere", None),
        ("nn.Linear(1, 2)", None),
        ("nn.Linear(1, 2).weight", None),
        ("torch.optim.sgd.SGD", "torch.optim.SGD"),
    ],
)
def test_names_at_module_level(text: str, expected: str | None) -> None:
    assert Names.of(ast.parse(NAMES), "pkg.m", "pkg").qualified(expression(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("F.relu", None),
        ("nn.Linear", None),
        ("opt.SGD", "torch.optim.SGD"),
        ("local", "torch.optim.Adam"),
        ("g", "pkg.m.A.f.<locals>.g"),
        ("A", "pkg.m.A"),
        ("torch.nn.ReLU", "torch.nn.ReLU"),
        ("unknown", None),
        ("f", None),
    ],
)
def test_names_in_a_function(text: str, expected: str | None) -> None:
    tree = ast.parse(NAMES)
    names = Names.of(tree, "pkg.m", "pkg")
    method = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "f")
    assert names.qualified(expression(text), names.scope(method)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch.nn.modules.linear.Linear", "torch.nn.Linear"),
        ("torch.nn.modules.Linear", "torch.nn.Linear"),
        ("torch.nn.utils.clip_grad.clip_grad_norm_", "torch.nn.utils.clip_grad_norm_"),
        ("torch.nn.utils.weight_norm.weight_norm", "torch.nn.utils.weight_norm"),
        ("torch.nn.utils.parametrizations.weight_norm", "torch.nn.utils.parametrizations.weight_norm"),
        ("torch.functional.norm", "torch.norm"),
        ("torch.nn.parallel.data_parallel.DataParallel", "torch.nn.DataParallel"),
        ("torch.cuda.amp.grad_scaler.GradScaler", "torch.cuda.amp.GradScaler"),
        ("torch.autograd.grad_mode.no_grad", "torch.no_grad"),
        ("torch.optim.lr_scheduler.StepLR", "torch.optim.lr_scheduler.StepLR"),
        ("torch.nn.functional.relu", "torch.nn.functional.relu"),
        ("torch.optim", "torch.optim"),
        ("other.nn.modules.linear.Linear", "other.nn.modules.linear.Linear"),
    ],
)
def test_canonical_names(name: str, expected: str) -> None:
    assert canonical(name) == expected


PACKAGE = {
    "pyproject.toml": "",
    "src/pkg/__init__.py": "from .nets import *\nfrom .a import A as First\n",
    "src/pkg/nets/__init__.py": "from .deep import Deep\nfrom . import deep as inner\n__all__ = ['Deep', 'inner']\n",
    "src/pkg/nets/deep.py": "class Deep:\n    class Part: pass\nclass Hidden: pass\n",
    "src/pkg/a.py": "from pkg.b import B\nclass A: pass\nC = A\n",
    "src/pkg/b.py": "from pkg.a import B\n",
    "scripts/run.py": "import pkg\nimport tools.extra as extra\n",
    "scripts/tools/extra.py": "def helper(): pass\n",
}


@pytest.mark.parametrize(
    ("module", "name", "path", "kind"),
    [
        ("pkg", "Deep", "src/pkg/nets/deep.py", "Deep"),
        ("pkg", "First", "src/pkg/a.py", "A"),
        ("pkg", "inner.Deep.Part", "src/pkg/nets/deep.py", "Part"),
        ("pkg.a", "C", "src/pkg/a.py", "A"),
        ("tools.extra", "helper", "scripts/tools/extra.py", "helper"),
    ],
)
def test_definitions_are_found_through_re_exports(tmp_path: Path, module: str, name: str, path: str, kind: str) -> None:
    index = project(tmp_path, PACKAGE)
    found = index.resolve(module, name, str(tmp_path / "scripts/run.py"))
    assert found is not None
    assert found[0] == os.path.relpath(tmp_path / path) or found[0] == str(tmp_path / path)
    assert getattr(found[1], "name", None) == kind


@pytest.mark.parametrize(
    ("module", "name"), [("pkg", "Hidden"), ("pkg.a", "B"), ("torch.nn", "Linear"), ("pkg", "x.y")]
)
def test_what_is_not_there_is_none(tmp_path: Path, module: str, name: str) -> None:
    assert project(tmp_path, PACKAGE).resolve(module, name, str(tmp_path / "scripts/run.py")) is None


def test_module_names(tmp_path: Path) -> None:
    index = project(tmp_path, {**PACKAGE, "loose/part.py": "from . import other\n", "loose/other.py": ""})
    assert index.module_of(tmp_path / "src/pkg/nets/deep.py") == "pkg.nets.deep"
    assert index.module_of(tmp_path / "src/pkg/nets/__init__.py") == "pkg.nets"
    assert index.module_of(tmp_path / "scripts/run.py") == "run"
    assert index.module_of(tmp_path / "loose/part.py") == "loose.part"


def test_broken_files_and_link_loops_are_passed_over(tmp_path: Path) -> None:
    index = project(tmp_path, {"a.py": "class A: pass\nA(1)\n", "bad.py": "A(\n"})
    (tmp_path / "nul.py").write_bytes(b"A(\0)")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    (tmp_path / "wrong.py").write_bytes(b"name = '\xe9'\nA(2)")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "folder.py").mkdir()
    assert [s.args for s in index.call_sites(str(tmp_path / "a.py"), "A")] == [("1",)]
    assert index.parse(tmp_path / "bad.py") is None
    assert index.parse(tmp_path / "nul.py") is None
    assert index.parse(tmp_path / "wrong.py") is None
    assert index.parse(tmp_path / "folder.py") is None
    latin = index.parse(tmp_path / "latin.py")
    assert latin is not None
    assert "é" in latin.text


def test_a_text_in_place_of_a_file(tmp_path: Path) -> None:
    index = project(tmp_path, {"a.py": "X = 1\n"})
    path = tmp_path / "a.py"
    other = index.with_text(path, "Y = 2\r\n")
    first, second = index.parse(path), other.parse(path)
    assert first is not None
    assert second is not None
    assert (first.text, second.text) == ("X = 1\n", "Y = 2\n")
    assert ProjectIndex([path], texts={str(path): "Z = 3\n"}).parse(path).text == "Z = 3\n"  # type: ignore[union-attr]


CALLS = {
    "literals": ("Net(64, depth=-2)", ["64"], {"depth": "-2"}),
    "a local": ("def f():\n    dim = 64\n    Net(dim * 2)", ["64 * 2"], {}),
    "a module constant": ("DIM = 64\nNet(DIM)", ["64"], {}),
    "a parameter with a default": ("def f(dim=8, *, k=2):\n    Net(dim, k)", ["8", "2"], {}),
    "argparse": (
        """
        import argparse
        def main():
            parser = argparse.ArgumentParser()
            parser.add_argument("-w", "--hidden-size", type=int, default=128)
            parser.add_argument("--flag", action="store_true")
            args = parser.parse_args()
            size = args.hidden_size
            Net(size, on=args.flag)
        """,
        ["128"],
        {"on": "False"},
    ),
    "a dataclass": (
        """
        from dataclasses import dataclass, field
        @dataclass
        class Config:
            dim: int = 64
            sizes: list = field(default_factory=lambda: [1, 2])
        def main(cfg: Config):
            Net(cfg.dim, cfg.sizes)
        """,
        ["64", "[1, 2]"],
        {},
    ),
    "a dictionary spread out": ("def f():\n    kw = dict(dim=3)\n    Net(*[1, 2], **kw)", ["1", "2"], {"dim": "3"}),
    "self": (
        """
        class T:
            def __init__(self, dim=5):
                self.dim = dim
            def build(self): return Net(self.dim)
        """,
        ["5"],
        {},
    ),
    "a loop over a list": ("def f():\n    for dim in (4, 8):\n        Net(dim)", ["4"], {}),
    "another name": ("import net\nBuild = net.Net\nnet.Net(3)", ["3"], {}),
    "unpacked": ("def f():\n    a, (b, c) = 1, (2, 3)\n    Net(c)", ["3"], {}),
    "a comprehension": ("def f():\n    n = 2\n    Net([k * n for k in range(3)])", ["[k * 2 for k in range(3)]"], {}),
}


@pytest.mark.parametrize(("text", "args", "kwargs"), CALLS.values(), ids=CALLS.keys())
def test_arguments_of_calls(tmp_path: Path, text: str, args: list[str], kwargs: dict[str, str]) -> None:
    files = {"net.py": "class Net: pass\n", "train.py": "from net import Net\n" + textwrap.dedent(text)}
    (site,) = project(tmp_path, files).call_sites(str(tmp_path / "net.py"), "Net")
    assert site.closed
    assert (list(site.args), site.kwargs) == (args, kwargs)
    assert site.to_json() == {"module": "train", "args": args, "kwargs": kwargs, "line": site.line}


def test_names_of_the_module_stay_in_arguments(tmp_path: Path) -> None:
    text = (
        "import torch.nn as nn\nfrom net import Net\nhead = nn.Linear(2, 2)\nNet(nn.ReLU, act=nn.GELU(), head=head)\n"
    )
    index = project(tmp_path, {"net.py": "class Net: pass\n", "train.py": text})
    (site,) = index.call_sites(str(tmp_path / "net.py"), "Net")
    assert (site.args, site.kwargs) == (("nn.ReLU",), {"act": "nn.GELU()", "head": "head"})
    assert site.names == ("head", "nn")


@pytest.mark.parametrize(
    "text",
    [
        "def f(dim): Net(dim)",
        "def f():\n    for k in range(3): Net(k)",
        "for k in range(3): Net(k)",
        "Net(open('x').read())",
        "Net(nowhere)",
        "def f(**kw): Net(**kw)",
    ],
)
def test_arguments_that_the_text_does_not_tell_come_last(tmp_path: Path, text: str) -> None:
    files = {"net.py": "class Net: pass\n", "train.py": f"from net import Net\n{text}\nNet(7)\n"}
    first, second = project(tmp_path, files).call_sites(str(tmp_path / "net.py"), "Net")
    assert (first.closed, first.args) == (True, ("7",))
    assert not second.closed


def test_the_order_of_call_sites(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "from .net import Net",
        "pkg/net.py": "class Net: pass\ndef tiny(): return Net(1)\nclass Other:\n    class Net: pass\nOther.Net(0)\n",
        "pkg/use.py": "from . import Net as N\nN(2)\n",
        "tests/test_net.py": "from pkg import Net\ndef test(): Net(3)\n",
        "other.py": "class Net: pass\nNet(9)\n",
        "setup.py": "",
        "README.md": "```python\nimport torch\n\n\nfrom pkg import Net\n\nnet = Net(4)\nnet(torch.ones(2, 3))\n```\n",
    }
    sites = project(tmp_path, files).call_sites(str(tmp_path / "pkg/net.py"), "Net")
    assert [s.args for s in sites] == [("1",), ("2",), ("3",), ("4",)]
    assert (sites[3].inputs, sites[3].line) == (("torch.ones(2, 3)",), 7)
    assert sites[3].to_json()["inputs"] == {"args": ["torch.ones(2, 3)"], "kwargs": {}}


def test_values_of_a_configuration(tmp_path: Path) -> None:
    files = {
        "settings.py": "class Clip:\n    value = 0.5\nbase = {'lr': 0.1, 'optim': {'clip': 1.0}}\n",
        "train.py": """
            import click
            from types import SimpleNamespace
            from settings import base as config, Clip
            import argparse
            p = argparse.ArgumentParser()
            p.add_argument("--clip", default="5.0", type=float)
            p.add_argument("--name")
            opt, rest = p.parse_known_args()
            cfg = SimpleNamespace(max_norm=2.0, data=open("x"))
            @click.option("--norm", default=3.0)
            def main(norm): pass
            class Trainer:
                def __init__(self): self.args = p.parse_args()
            """,
    }
    found = project(tmp_path, files).values(str(tmp_path / "train.py"))
    assert found == {
        "opt.clip": "5.0",
        "self.args.clip": "5.0",
        "cfg.max_norm": "2.0",
        "norm": "3.0",
        "config['lr']": "0.1",
        "config['optim']['clip']": "1.0",
        "Clip.value": "0.5",
    }


def test_values_that_another_file_parses(tmp_path: Path) -> None:
    files = {
        "engine.py": "def train(model, args):\n    clip(model, args.clip, args.other)\n",
        "main.py": """
            import argparse
            from engine import train
            parser = argparse.ArgumentParser()
            parser.add_argument("--clip", type=float, default=2.5)
            parser.add_argument("--unused", default=1)
            opts = parser.parse_args()
            train(None, opts)
            """,
        "unrelated.py": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--other', default=9)\n",
    }
    assert project(tmp_path, files).values(str(tmp_path / "engine.py")) == {"args.clip": "2.5"}


def test_a_global_that_the_module_never_binds_has_no_name() -> None:
    tree = ast.parse(
        "def setup():\n    global quirks\n    quirks = set()\n\ndef use():\n    global quirks\n    quirks.add(1)\n"
    )
    names = Names.of(tree)
    assert names.qualified(expression("quirks.add"), names.scope(tree.body[1])) is None
