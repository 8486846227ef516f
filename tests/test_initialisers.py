"""How the reading of a model follows what initialises its weights: in the class, around it, in other files."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from gradlint.analysis import Analyst
from gradlint.facts.index import ProjectIndex
from gradlint.facts.models import ModelFacts, read_models
from gradlint.facts.modules import ModuleEnv
from gradlint.facts.surroundings import placed, read_surroundings

HEAD = "import math\nimport torch\nfrom torch import nn\n"
NET = """
class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.a = nn.Linear(width, width)
        self.b = nn.Linear(width, 3)
        {init}

    def reset(self):
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.02)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))
"""


def read(text: str) -> dict[str, ModelFacts]:
    text = HEAD + textwrap.dedent(text)
    tree = ast.parse(text)
    module = ModuleEnv(tree, "m.py", "m", "", lambda name: None, text)
    return {m.symbol: m for m in placed(read_models(module), read_surroundings(tree), None, module)}


def inits(model: ModelFacts) -> dict[str, str]:
    return {i.path: i.init for i in model.initialised}


@pytest.mark.parametrize(
    ("call", "init"),
    [
        ("nn.init.normal_(self.a.weight)", "normal:1.0"),
        ("nn.init.normal_(self.a.weight, 0, 0.02)", "normal:0.02"),
        ("self.a.weight.data.normal_(0.0, 0.5)", "normal:0.5"),
        ("nn.init.trunc_normal_(self.a.weight, std=.02)", "normal:0.02"),
        ("nn.init.normal_(self.a.weight, 0, math.sqrt(2.0 / unknown))", "unknown"),
        ("nn.init.uniform_(self.a.weight, -1, 1)", f"normal:{2 / 12**0.5}"),
        ("nn.init.kaiming_normal_(self.a.weight)", "he"),
        ("nn.init.kaiming_uniform_(self.a.weight, a=5 ** 0.5)", "default"),
        ("nn.init.kaiming_normal_(self.a.weight, nonlinearity='linear')", "lecun"),
        ("nn.init.xavier_uniform_(self.a.weight, gain=nn.init.calculate_gain('tanh'))", "gain:2.77778"),
        ("nn.init.orthogonal_(self.a.weight, 0.01)", "gain:0.0001"),
        ("nn.init.constant_(self.a.weight, 0.0)", "zeros"),
        ("nn.init.ones_(self.a.weight)", "constant"),
        ("self.a.weight.data.fill_(0.1)", "constant"),
        ("self.a.weight = nn.Parameter(torch.randn(64, 64) / 8)", "normal:0.125"),
    ],
)
def test_what_a_call_makes_of_a_weight(call: str, init: str) -> None:
    model = read(NET.format(init=call))["Net"]
    assert inits(model) == {"a": init}
    assert [i.at for i in model.initialised] == [("m.py", 10)]


def test_a_branch_that_may_not_be_taken_makes_it_unknown() -> None:
    model = read(NET.format(init="if flag(): nn.init.zeros_(self.a.weight)"))["Net"]
    assert inits(model) == {}
    assert {n.init for n in model.graph.nodes if n.path == "a"} == {"unknown"}


@pytest.mark.parametrize(
    "around",
    [
        "def f(m):\n    if isinstance(m, nn.Linear):\n        m.weight.data.normal_(0, 0.02)\n\n"
        "net = Net()\nnet.apply(f)\n",
        "def f(m):\n    name = m.__class__.__name__\n    if name.find('Linear') != -1:\n"
        "        m.weight.data.normal_(0, 0.02)\n\nnet = Net()\nnet.apply(f)\n",
        "def f(net):\n    for m in net.modules():\n        if type(m) is nn.Linear:\n"
        "            nn.init.normal_(m.weight, 0, 0.02)\n\nnet = Net()\nf(net)\n",
        "def f(net):\n    for m in net.modules():\n        if isinstance(m, nn.Linear):\n"
        "            nn.init.normal_(m.weight, 0, 0.02)\n    return net\n\ndef make():\n    return f(Net())\n",
        "net = Net()\nnet.reset()\n",
    ],
)
def test_what_code_around_a_class_does_to_its_weights(around: str) -> None:
    model = read(NET.format(init="pass") + around)["Net"]
    assert not model.initialised_elsewhere
    assert inits(model) == {"a": "normal:0.02", "b": "normal:0.02"}


@pytest.mark.parametrize(
    "around",
    [
        "net = Net()\nnet.apply(make_initialiser('relu'))\n",
        "net = Net()\nfor p in net.parameters():\n    nn.init.normal_(p, 0, 0.02)\n",
        "net = Net()\nnet.load_state_dict(torch.load('net.pt'))\n",
        "class Outer(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.net = Net()\n\n"
        "    def forward(self, x):\n        return self.net(x)\n\nouter = Outer()\nouter.net.apply(f)\n",
    ],
)
def test_what_cannot_be_followed_is_said(around: str) -> None:
    assert read(NET.format(init="pass") + around)["Net"].initialised_elsewhere


def test_a_target_network_that_starts_as_a_copy_is_no_checkpoint() -> None:
    around = "a, b = 1, 2\nnet = Net()\ntwin = Net()\ntwin.load_state_dict(net.state_dict())\n"
    assert not read(NET.format(init="pass") + around)["Net"].initialised_elsewhere


@pytest.mark.parametrize(
    ("train", "elsewhere", "init"),
    [
        ("from net import Net\nfrom weights import small\n\nmodel = Net()\nmodel.apply(small)\n", False, "normal:0.02"),
        ("from net import Net\nfrom weights import make\n\nmodel = Net()\nmodel.apply(make())\n", True, ""),
        ("from other import Net\nfrom weights import small\n\nmodel = Net()\nmodel.apply(small)\n", False, ""),
    ],
)
def test_functions_of_other_files_are_followed(tmp_path: Path, train: str, elsewhere: bool, init: str) -> None:
    deep = NET.replace("torch.tanh(self.a(x))", "self.deep(torch.tanh(self.a(x)))").format(
        init="self.deep = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.ReLU())])"
    )
    (tmp_path / "net.py").write_text(HEAD + deep)
    (tmp_path / "other.py").write_text(HEAD + deep)
    (tmp_path / "weights.py").write_text(
        "from torch import nn\n\ndef small(m):\n    if isinstance(m, nn.Linear):\n"
        "        nn.init.normal_(m.weight, std=0.02)\n\ndef make():\n    return small\n"
    )
    (tmp_path / "train.py").write_text("import torch\n" + train)
    path = str(tmp_path / "net.py")
    index = ProjectIndex([str(tmp_path)])
    file = index.parse(path)
    assert file is not None
    (model,) = Analyst(index, {}, frozenset({"GL303"}), {}, probing=True).facts(path, file.text, file.tree, []).models
    assert model.initialised_elsewhere is elsewhere
    assert inits(model).get("a", "") == init
