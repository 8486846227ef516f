"""Reading models from source text: depth, activations, norms and initialisers of their chains."""

from __future__ import annotations

import ast
import textwrap

import pytest

from gradlint.facts.models import ModelFacts, read_models
from gradlint.facts.modules import ModuleEnv
from gradlint.facts.surroundings import placed, read_surroundings

HEAD = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"


def read(body: str) -> dict[str, ModelFacts]:
    text = HEAD + textwrap.dedent(body)
    tree = ast.parse(text)
    module = ModuleEnv(tree, "m.py", "m", "", lambda name: None, text)
    return {m.symbol: m for m in placed(read_models(module), read_surroundings(tree))}


def longest(model: ModelFacts) -> tuple[int, set[str], int, set[str]]:
    """Depth, activations, links that hold a norm, initialisers of the deepest chain."""
    chain = max(model.chains, key=lambda c: c.depth)
    acts = {a.op for link in chain.activations for a in link}
    return chain.depth, acts, sum(1 for link in chain.norms if link), {layer.init for layer in chain.layers}


def depth(model: ModelFacts) -> int:
    return max((c.depth for c in model.chains), default=0)


def test_layers_made_in_a_loop_with_an_activation_by_name() -> None:
    model = read("""
        ACTS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
        class Net(nn.Module):
            def __init__(self, width=64, depth=12, act="sigmoid"):
                super().__init__()
                layers = [nn.Linear(10, width), ACTS[act]()]
                for _ in range(depth - 2):
                    layers += [nn.Linear(width, width), ACTS[act]()]
                layers.append(nn.Linear(width, 1))
                self.net = nn.Sequential(*layers)
            def forward(self, x):
                return self.net(x)
        """)["Net"]
    assert longest(model) == (12, {"sigmoid"}, 0, {"default"})
    assert not model.uncertain


def test_the_call_site_tells_the_depth() -> None:
    model = read("""
        class Net(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(n)])
            def forward(self, x):
                for layer in self.layers:
                    x = torch.relu(layer(x))
                return x
        def main():
            depth = 9
            net = Net(depth)
        """)["Net"]
    assert longest(model) == (9, {"relu"}, 0, {"default"})


def test_a_depth_that_nothing_tells_is_uncertain() -> None:
    model = read("""
        class Net(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(n)])
            def forward(self, x):
                for layer in self.layers:
                    x = torch.relu(layer(x))
                return x
        """)["Net"]
    assert model.uncertain


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("torch.sigmoid(self.a(x))", "sigmoid"),
        ("F.sigmoid(self.a(x))", "sigmoid"),
        ("self.a(x).sigmoid()", "sigmoid"),
        ("F.gelu(self.a(x))", "gelu"),
        ("self.a(x).tanh_()", "tanh"),
        ("getattr(F, 'leaky_relu')(self.a(x), 0.1)", "leaky_relu"),
        ("self.act(self.a(x))", "elu"),
    ],
)
def test_spellings_of_an_activation(call: str, expected: str) -> None:
    model = read(f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(8, 8)
                self.b = nn.Linear(8, 8)
                self.act = nn.ELU()
            def forward(self, x):
                return self.b({call})
        """)["Net"]
    assert longest(model)[:2] == (2, {expected})


def test_a_residual_sum_ends_the_chain() -> None:
    model = read("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
            def forward(self, x):
                for block in self.blocks:
                    x = x + F.relu(block(x))
                return x
        """)["Net"]
    assert depth(model) == 1


def test_a_skip_to_the_decoder_ends_the_chain() -> None:
    model = read("""
        class UNet(nn.Module):
            def __init__(self):
                super().__init__()
                self.down = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)])
                self.up = nn.ModuleList([nn.Conv2d(16, 8, 3, padding=1) for _ in range(6)])
            def forward(self, x):
                kept = []
                for conv in self.down:
                    x = F.relu(conv(x))
                    kept.append(x)
                    x = F.max_pool2d(x, 2)
                for conv, skip in zip(self.up, reversed(kept)):
                    x = F.relu(conv(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1)))
                return x
        """)["UNet"]
    assert depth(model) <= 2


def test_gates_and_squeeze_excitation_are_no_chains() -> None:
    model = read("""
        class Gated(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))
                self.g = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))
            def forward(self, x):
                for a, g in zip(self.a, self.g):
                    x = a(x) * torch.sigmoid(g(x))
                return x
        """)["Gated"]
    assert depth(model) == 1


def test_blocks_helpers_and_base_classes_are_followed() -> None:
    models = read("""
        def conv(cin, cout):
            return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))
        class Base(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.body = self.make(n)
            def make(self, n):
                return nn.Sequential(*[conv(8, 8) for _ in range(n)])
        class Net(Base):
            def __init__(self):
                super().__init__(9)
                self.head = nn.Linear(8, 2)
            def forward(self, x):
                return self.head(self.body(x).mean((2, 3)))
        """)
    assert longest(models["Net"]) == (10, {"relu"}, 9, {"default"})


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("self.apply(self._init)", "he"),
        ("for m in self.modules():\n            self._init(m)", "he"),
        ("for layer in self.layers: nn.init.xavier_uniform_(layer.weight)", "xavier"),
        ("for layer in self.layers: nn.init.orthogonal_(layer.weight, gain=1.0)", "orthogonal"),
        ("for layer in self.layers: layer.weight.data.normal_(0, 0.02)", "normal:0.02"),
        ("[nn.init.normal_(l.weight, std=0.01) for l in self.layers]", "normal:0.01"),
        ("for n, p in self.named_parameters():\n            if 'weight' in n: nn.init.kaiming_normal_(p)", "he"),
    ],
)
def test_spellings_of_an_initialiser(code: str, expected: str) -> None:
    model = read(f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        {code}
    def _init(self, m):
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return x
""")["Net"]
    assert longest(model)[3] == {expected}


def test_sequential_outside_a_class() -> None:
    models = read("""
        def mlp(depth=10):
            layers = []
            for i in range(depth):
                layers.append(nn.Linear(64, 64))
                layers.append(nn.Tanh())
            return nn.Sequential(*layers)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        """)
    assert (models["mlp"].kind, longest(models["mlp"])[0]) == ("function", 10)
    assert (models["net"].kind, longest(models["net"])[0]) == ("variable", 2)


def test_a_config_object_gives_its_defaults() -> None:
    model = read("""
        from dataclasses import dataclass
        @dataclass
        class Config:
            width: int = 32
            depth: int = 7
        class Net(nn.Module):
            def __init__(self, cfg: Config):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(cfg.width, cfg.width) for _ in range(cfg.depth)])
            def forward(self, x):
                for layer in self.layers:
                    x = torch.sigmoid(layer(x))
                return x
        """)["Net"]
    assert longest(model)[:2] == (7, {"sigmoid"})


def test_optimizer_and_outside_initialisers() -> None:
    models = read("""
        class A(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        class B(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        def main():
            a = A().to("cuda")
            b = B()
            b.apply(weights_init)
            opt_a = torch.optim.AdamW(a.parameters())
            opt_b = torch.optim.SGD(b.parameters(), lr=0.1)
        """)
    assert (models["A"].optimizer, models["A"].initialised_elsewhere) == ("adam", False)
    assert (models["B"].optimizer, models["B"].initialised_elsewhere) == ("sgd", True)


def test_resuming_from_a_checkpoint_is_no_initialiser() -> None:
    model = read("""
        class A(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        a = A()
        if args.resume:
            a.load_state_dict(torch.load(args.resume))
        """)["A"]
    assert not model.initialised_elsewhere
