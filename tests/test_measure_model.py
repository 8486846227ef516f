"""Model experiments: depths and numbers of known nets, remedies, and everything that goes into one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.model_lab import ModelLab, depths, written


@pytest.fixture(scope="module")
def lab() -> Iterator[ModelLab]:
    with ModelLab() as running:
        yield running


MLP = """
class Net(nn.Module):
    def __init__(self, depth, act, norm=None, init=None, width=64):
        super().__init__()
        layers = []
        for _ in range(depth - 1):
            layers.append(nn.Linear(width, width))
            if norm is not None:
                layers.append(norm(width))
            layers.append(act())
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))
        if init is not None:
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    init(m.weight)
                    nn.init.zeros_(m.bias)

    def forward(self, x):
        return self.net(x)


def he(w):
    nn.init.kaiming_normal_(w, nonlinearity="relu")


def tiny(w):
    nn.init.normal_(w, 0.0, 0.01)
"""


def mlp(lab: ModelLab, *args: str, **more: Any) -> dict[str, Any]:
    return lab.run(MLP, "Net", calls=[{"module": "m", "args": list(args), "kwargs": {}, "line": 1}], **more)


# Width 64, default initialization where nothing else is said: medians of five seeds on torch 2.13, measured with
# cross-entropy and random labels. The random cotangent must agree with them within a factor of two.
TABLE = [
    (("3", "nn.Sigmoid"), (0.20, 0.13, 0.010)),
    (("4", "nn.Sigmoid"), (0.031, 0.020, 0.0015)),
    (("6", "nn.Sigmoid"), (7e-4, 4e-4, 3e-5)),
    (("8", "nn.ReLU"), (0.10, 4.4e-3, 6.6e-4)),
    (("12", "nn.ReLU"), (1.9e-3, 1.2e-4, 1.8e-5)),
    (("10", "nn.Tanh"), (0.099, 9e-3, 3e-3)),
    (("20", "nn.Tanh"), (4e-4, 3e-5, 1e-5)),
    (("12", "nn.Sigmoid", "nn.LayerNorm"), (5e-5, 5e-5, 1e-5)),
    (("12", "nn.Sigmoid", "nn.BatchNorm1d"), (1.3, 0.26, 0.12)),
]


@pytest.mark.parametrize(("args", "expected"), TABLE, ids=lambda v: "-".join(v) if isinstance(v[0], str) else "")
def test_numbers_of_the_table_of_nets(
    lab: ModelLab, args: tuple[str, ...], expected: tuple[float, float, float]
) -> None:
    answer = mlp(lab, *args)
    numbers = written(answer)
    assert depths(answer) == [int(args[0])]
    for name, value in zip(("rho_W", "rho_delta", "sigma_out"), expected, strict=True):
        assert value / 2 <= numbers[name] <= value * 2, (name, numbers[name], value)
    assert answer["chains"][0]["seeds"] == 5


def test_deep_sigmoids_are_cured_by_relu_and_he_and_by_batch_norm_only(lab: ModelLab) -> None:
    (chain,) = mlp(lab, "12", "nn.Sigmoid")["chains"]
    assert chain["written"]["rho_W"] < 1e-7
    assert chain["after"]["relu_he"]["rho_W"] > 0.1
    assert chain["after"]["relu_he"]["rho_delta"] > 0.1
    assert chain["after"]["batch_norm"]["rho_W"] > 0.1
    assert chain["after"]["xavier"]["rho_W"] < 1e-4


def test_deep_relu_is_cured_by_he_and_by_a_norm(lab: ModelLab) -> None:
    (chain,) = mlp(lab, "12", "nn.ReLU")["chains"]
    for remedy in ("he", "batch_norm"):
        after = chain["after"][remedy]
        assert min(after["rho_W"], after["rho_delta"], after["sigma_out"]) >= 0.1, remedy
    assert chain["default_init"]
    assert chain["activations"] == {"relu": 11}


def test_where_batch_norm_explodes_layer_norm_is_tried(lab: ModelLab) -> None:
    (chain,) = mlp(lab, "30", "nn.ReLU")["chains"]
    assert chain["after"]["batch_norm"]["rho_W"] > 100
    assert 0.1 <= chain["after"]["layer_norm"]["rho_W"] <= 100


def test_ratios_far_below_single_precision_are_read(lab: ModelLab) -> None:
    numbers = written(mlp(lab, "50", "nn.Sigmoid"))
    assert 2e-42 < numbers["rho_W"] < 2e-40


def test_healthy_nets_get_no_remedies(lab: ModelLab) -> None:
    (chain,) = mlp(lab, "12", "nn.ReLU", "None", "he")["chains"]
    assert chain["written"]["rho_W"] > 0.1
    assert chain["after"] == {}
    assert not chain["default_init"]


def test_an_initialiser_that_is_too_small_is_seen_in_the_weights(lab: ModelLab) -> None:
    (chain,) = mlp(lab, "12", "nn.ReLU", "None", "tiny")["chains"]
    assert not chain["default_init"]
    assert chain["weight_std_ratio"][0] == pytest.approx(0.01 * (3 * 64) ** 0.5, rel=0.1)
    assert chain["written"]["rho_delta"] < 1e-6


def test_the_same_request_gives_the_same_numbers(lab: ModelLab) -> None:
    assert mlp(lab, "8", "nn.ReLU") == mlp(lab, "8", "nn.ReLU")


# Controls


def test_identity_remedies_cure_nothing(lab: ModelLab) -> None:
    (chain,) = mlp(lab, "12", "nn.ReLU", controls={"identity_remedies": True})["chains"]
    assert chain["after"]["he"] == chain["written"]


def test_without_activations_nothing_vanishes_as_it_did(lab: ModelLab) -> None:
    assert written(mlp(lab, "6", "nn.Sigmoid", controls={"stub": "activation"}))["rho_W"] > 0.1


def test_an_empty_backward_is_no_gradient(lab: ModelLab) -> None:
    numbers = written(mlp(lab, "6", "nn.Sigmoid", controls={"stub": "backward"}))
    assert numbers["no_gradient"]
    assert numbers["rho_W"] is None


# Which layers make a chain


def test_an_autoencoder_is_one_chain(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Autoencoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = nn.Sequential(
                    nn.Linear(784, 256), nn.Sigmoid(), nn.Linear(256, 64), nn.Sigmoid(),
                    nn.Linear(64, 16), nn.Sigmoid())
                self.decoder = nn.Sequential(
                    nn.Linear(16, 64), nn.Sigmoid(), nn.Linear(64, 256), nn.Sigmoid(), nn.Linear(256, 784))

            def forward(self, x):
                return self.decoder(self.encoder(x.view(x.size(0), -1)))
        """,
        "Autoencoder",
    )
    assert depths(answer) == [6]
    assert (answer["chains"][0]["first"], answer["chains"][0]["last"]) == ("encoder.0", "decoder.4")
    assert written(answer)["rho_W"] < 1e-2


def test_residual_and_skip_connections_end_chains(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))
                self.b = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))

            def forward(self, x):
                for a, b in zip(self.a, self.b):
                    x = x + b(torch.relu(a(x)))
                return x
        """,
        "Residual",
    )
    assert depths(answer) == []
    answer = lab.run(
        """
        def block(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU())

        class UNet(nn.Module):
            def __init__(self):
                super().__init__()
                self.down1, self.down2, self.down3 = block(1, 8), block(8, 16), block(16, 32)
                self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
                self.dec2, self.dec1 = block(32, 16), block(16, 8)
                self.out = nn.Conv2d(8, 1, 1)

            def forward(self, x):
                x1 = self.down1(x)
                x2 = self.down2(F.max_pool2d(x1, 2))
                x3 = self.down3(F.max_pool2d(x2, 2))
                y = self.dec2(torch.cat([self.up2(x3), x2], 1))
                return self.out(self.dec1(torch.cat([self.up1(y), x1], dim=1)))
        """,
        "UNet",
    )
    assert max(depths(answer), default=0) <= 3


def test_a_plain_conv_net_of_thirteen_convolutions(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class VGG(nn.Module):
            def __init__(self, num_classes=10):
                super().__init__()
                layers, c = [], 3
                for v in [16, 16, "M", 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M", 64, 64, 64, "M"]:
                    if v == "M":
                        layers.append(nn.MaxPool2d(2))
                    else:
                        layers += [nn.Conv2d(c, v, 3, padding=1), nn.ReLU(inplace=True)]
                        c = v
                self.features, self.classifier = nn.Sequential(*layers), nn.Linear(64, num_classes)

            def forward(self, x):
                return self.classifier(torch.flatten(self.features(x), 1))
        """,
        "VGG",
    )
    (chain,) = answer["chains"]
    assert chain["depth"] == 14
    assert chain["written"]["rho_delta"] < 1e-3
    assert chain["after"]["he"]["rho_W"] > 0.1
    assert answer["input_shapes"][0][1:] == [3, 32, 32]
    assert answer["trace"] == "symbolic"


def test_gates_attention_and_recurrence_are_no_chains(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.LSTM(16, 16, batch_first=True)
                self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
                self.gate, self.value, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

            def forward(self, x):
                x, _ = self.rnn(x)
                x, _ = self.attention(x, x, x)
                return self.out(torch.sigmoid(self.gate(x)) * self.value(x))
        """,
        "Mixed",
        min_depth=2,
    )
    assert depths(answer) == []
    kinds = {n["kind"] for n in answer["graph"]["nodes"]}
    assert {"recurrent", "attention", "join"} <= kinds


# How weights are read


def test_functional_weights_weight_norm_and_parametrizations_are_weight_layers(lab: ModelLab) -> None:
    answer = lab.run(
        """
        from torch.nn.utils.parametrizations import spectral_norm, weight_norm

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.randn(16, 16) / 4)
                self.normed = weight_norm(nn.Linear(16, 16))
                self.spectral = spectral_norm(nn.Linear(16, 16))
                self.plain = nn.Linear(16, 16)
                self.scale = nn.Parameter(torch.ones(16))

            def forward(self, x):
                x = torch.tanh(x @ self.w + self.scale)
                x = torch.tanh(self.normed(x) * self.scale)
                x = torch.tanh(self.spectral(x))
                x = torch.tanh(F.linear(x, self.plain.weight, self.plain.bias))
                return torch.einsum("bi,oi->bo", x, self.w)
        """,
        "Odd",
    )
    (chain,) = answer["chains"]
    paths = [n["path"] for n in answer["graph"]["nodes"] if n["kind"] == "weight"]
    assert paths == ["w", "normed", "spectral", "plain", "w"]
    assert chain["depth"] == 5
    assert chain["fan_ins"] == [16] * 5


def test_a_layer_that_is_called_several_times_is_read_per_call(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Shared(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

            def forward(self, x):
                for _ in range(8):
                    x = torch.sigmoid(self.layer(x))
                return self.out(x)
        """,
        "Shared",
    )
    (chain,) = answer["chains"]
    assert chain["depth"] == 9
    assert (chain["first"], chain["last"]) == ("layer", "out")
    assert chain["written"]["rho_W"] < 1e-4
    assert chain["after"]["relu_he"]["rho_W"] > 1e-2


def test_a_head_of_zeros_is_read_after_three_steps(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class ZeroHead(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(32, 32), nn.ReLU())])
                self.head = nn.Linear(32, 4)
                nn.init.zeros_(self.head.weight)

            def forward(self, x):
                return self.head(self.body(x))
        """,
        "ZeroHead",
    )
    numbers = written(answer)
    assert numbers["after_steps"] == 3
    assert not numbers["no_gradient"]
    assert numbers["rho_W"] > 0.1


def test_a_chain_that_nothing_comes_back_to_has_no_gradient(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Dead(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(32, 32), nn.ReLU())])
                self.head = nn.Linear(32, 4)

            def forward(self, x):
                return self.head(self.body(x) * 0.0)
        """,
        "Dead",
    )
    assert written(answer)["no_gradient"]


def test_parameters_without_a_gradient_are_listed(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Unused(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.aux = nn.Linear(8, 8), nn.Linear(8, 8)

            def forward(self, x):
                return {"y": self.a(x)}
        """,
        "Unused",
    )
    assert answer["unused"] == ["aux.weight", "aux.bias"]
    assert answer["with_gradient"] == 2


def test_lines_are_those_of_the_layers(lab: ModelLab) -> None:
    source = "import torch.nn as nn\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    for i in range(4):
        source += f"        self.l{i} = nn.Linear(8, 8)\n"
    source += "\n    def forward(self, x):\n        for layer in (self.l0, self.l1, self.l2):\n"
    source += "            x = layer(x).relu()\n        return self.l3(x)\n"
    (chain,) = lab.run({"m": source}, "Net")["chains"]
    assert (chain["first_line"], chain["last_line"]) == (6, 9)


# Building


def test_arguments_come_from_the_call_site(lab: ModelLab) -> None:
    sources = {
        "pkg.models": "from torch import nn\nfrom .blocks import block\n\nclass Net(nn.Module):\n"
        "    def __init__(self, width, depth, act):\n        super().__init__()\n"
        "        self.net = nn.Sequential(*[block(width, act) for _ in range(depth)])\n\n"
        "    def forward(self, x):\n        return self.net(x)\n",
        "pkg.blocks": "from torch import nn\n\ndef block(width, act):\n"
        "    return nn.Sequential(nn.Linear(width, width), act())\n",
        "pkg.train": "import torch\nfrom pkg.models import Net\nWIDTH = 24\n",
    }
    call = {"module": "pkg.train", "args": ["WIDTH"], "kwargs": {"depth": "5", "act": "torch.nn.Tanh"}, "line": 3}
    answer = lab.run(sources, "Net", calls=[call])
    assert depths(answer) == [5]
    assert answer["args"] == "Net(WIDTH, depth=5, act=torch.nn.Tanh)"
    assert answer["assumed"] == {}
    assert answer["input_shapes"] == [[128, 24]]


def test_a_depth_is_never_made_up_beyond_two(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Deep(nn.Module):
            def __init__(self, dim, num_layers):
                super().__init__()
                self.net = nn.Sequential(*[m for _ in range(num_layers) for m in (nn.Linear(dim, dim), nn.ReLU())])

            def forward(self, x):
                return self.net(x)
        """,
        "Deep",
        min_depth=2,
    )
    assert depths(answer) == [2]
    assert answer["assumed"] == {"dim": 64, "num_layers": 2, "depth_guessed": True}


def test_configuration_objects(lab: ModelLab) -> None:
    answer = lab.run(
        """
        import dataclasses

        @dataclasses.dataclass
        class Config:
            width: int = 20
            depth: int = 6

        class Net(nn.Module):
            def __init__(self, config: Config):
                super().__init__()
                self.net = nn.Sequential()
                for _ in range(config.depth):
                    self.net.extend([nn.Linear(config.width, config.width), nn.ReLU()])

            def forward(self, x):
                return self.net(x)
        """,
        "Net",
    )
    assert depths(answer) == [6]
    assert "depth_guessed" not in answer["assumed"]
    answer = lab.run(
        """
        class Net(nn.Module):
            def __init__(self, cfg):
                super().__init__()
                self.embed = nn.Embedding(cfg.vocab_size, cfg.model.dim)
                self.out = nn.Linear(cfg.model.dim, cfg["vocab_size"])

            def forward(self, ids):
                return self.out(self.embed(ids))
        """,
        "Net",
    )
    assert answer["assumed"]["cfg.vocab_size"] == 100
    assert answer["with_gradient"] == 3


def test_a_block_is_met_inside_the_model_that_makes_it(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Block(nn.Module):
            def __init__(self, fn, size):
                super().__init__()
                self.fn, self.last = fn, nn.Linear(size, size)

            def forward(self, x, shift):
                return self.last(self.fn(x)) + shift

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = Block(nn.Linear(12, 12), 12)

            def forward(self, x):
                return self.block(x, 2.0)
        """,
        "Block",
        min_depth=1,
    )
    assert answer["args"] == "Block in Model()"
    assert answer["with_gradient"] == 4


def test_functions_and_variables(lab: ModelLab) -> None:
    source = """
    def make(depth=5):
        layers = [m for _ in range(depth) for m in (nn.Linear(16, 16), nn.Sigmoid())]
        return nn.Sequential(*layers), "adam"

    model, name = make(7)
    """
    assert depths(lab.run(source, "make", kind="function")) == [5]
    assert depths(lab.run(source, "model", kind="variable")) == [7]


def test_a_base_class_that_keeps_its_arguments_in_kwargs(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Base(nn.Module):
            def __init__(self, in_features, hidden_dim):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(in_features, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1))

            def forward(self, x):
                return self.net(x)

        class Net(Base):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
        """,
        "Net",
        min_depth=2,
    )
    assert depths(answer) == [2]


def test_imports_that_fail(lab: ModelLab) -> None:
    source = """
    from nowhere.utils import register, get_logger
    import nowhere.ops as ops
    try:
        from nowhere import fast_linear
    except ImportError:
        fast_linear = None

    logger = get_logger(__name__)

    @register
    class Net(nn.Module):
        def __init__(self, dim: ops.Size = 8):
            super().__init__()
            logger.info("made")
            self.net = fast_linear(dim) if fast_linear is not None else nn.Linear(dim, dim)

        def forward(self, x):
            return self.net(x)

    class Needy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ops.Linear(8)

        def forward(self, x):
            return self.net(x)
    """
    assert lab.run(source, "Net", min_depth=1)["with_gradient"] == 2
    answer = lab.run(source, "Needy")
    assert answer["failed"] == "not-built"
    assert "nowhere" in answer["detail"]


def test_a_project_may_name_its_files_as_it_likes(lab: ModelLab) -> None:
    sources = {
        "modules": "from torch import nn\nimport types\nfrom build import width\n\nclass Net(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(width, types.COUNT)\n",
        "build": "width = 6\n",
        "types": "COUNT = 3\n",
    }
    assert lab.run(sources, "Net", min_depth=1)["with_gradient"] == 2


# Inputs


@pytest.mark.parametrize(
    ("layers", "forward", "shape"),
    [
        ("self.a = nn.Linear(7, 3)", "self.a(x)", [7]),
        ("self.a = nn.Conv1d(5, 3, 3)", "self.a(x)", [5, 64]),
        ("self.a = nn.Conv3d(2, 3, 3)", "self.a(x)", [2, 8, 32, 32]),
        ("self.a = nn.LSTM(9, 4, batch_first=True)", "self.a(x)[0]", [16, 9]),
        ("self.a = nn.Conv2d(3, 4, 3); self.b = nn.Linear(2704, 2)", "self.b(self.a(x).flatten(1))", [3, 28, 28]),
        ("self.a = nn.Conv2d(1, 4, 5, 4); self.b = nn.Linear(900, 2)", "self.b(self.a(x).flatten(1))", [1, 64, 64]),
        ("self.a = nn.LazyLinear(5)", "self.a(x)", [32]),
        ("self.b = nn.Linear(4, 4); self.a = nn.Conv2d(6, 4, 1)", "self.b(self.a(x).mean((2, 3)))", [6, 32, 32]),
        ("self.a = nn.LayerNorm(10)", "self.a(x)", [16, 10]),
        ("self.w = nn.Parameter(torch.randn(11, 2))", "x @ self.w", [11]),
    ],
)
def test_shapes_are_found(lab: ModelLab, layers: str, forward: str, shape: list[int]) -> None:
    source = f"""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            {layers}

        def forward(self, x):
            return {forward}
    """
    answer = lab.run(source, "Net")
    assert "failed" not in answer, answer
    assert answer["input_shapes"][0][1:] == shape


def test_several_inputs_masks_and_indices(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Net(nn.Module):
            def __init__(self, vocab_size=30, dim=16):
                super().__init__()
                self.embed, self.time, self.out = nn.Embedding(vocab_size, dim), nn.Linear(1, dim), nn.Linear(dim, 2)

            def forward(self, tokens, t, mask=None):
                assert tokens.ndim == 2
                h = self.embed(tokens) + self.time(t[:, None, None])
                if mask is not None:
                    h = h.masked_fill(~mask[..., None], 0.0)
                return self.out(h)
        """,
        "Net",
    )
    assert answer["with_gradient"] == 5
    assert len(answer["input_shapes"]) == 2


def test_inputs_of_a_call_in_the_project_are_used(lab: ModelLab) -> None:
    answer = lab.run(
        """
        SIZE = 9

        class Net(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.embed, self.out = nn.Embedding(n, 4), nn.Linear(4, n)

            def forward(self, graph, k):
                ids, weight = graph
                return self.out(self.embed(ids) * weight[..., None])[:k]
        """,
        "Net",
        calls=[
            {
                "module": "m",
                "args": ["SIZE"],
                "kwargs": {},
                "line": 1,
                "inputs": {"args": ["(torch.zeros(2, 3, dtype=torch.long), torch.rand(2, 3))"], "kwargs": {"k": "2"}},
            }
        ],
    )
    assert answer["with_gradient"] == 3


def test_the_users_hint_wins(lab: ModelLab) -> None:
    answer = mlp(lab, "4", "nn.ReLU", inputs=[[20, 5, 64]])
    assert answer["input_shapes"] == [[20, 5, 64]]
    answer = mlp(lab, "4", "nn.ReLU", inputs=[[20, 5]])
    assert answer["failed"] == "not-built"


def test_what_cannot_be_built_says_what_would_help(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Net(nn.Module):
            def __init__(self, backbone):
                super().__init__()
                self.backbone = backbone

            def forward(self, x):
                return self.backbone(x)
        """,
        "Net",
    )
    assert answer["failed"] == "not-built"
    assert "backbone" in answer["detail"]
    answer = lab.run(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(3, 3)

            def forward(self, x):
                raise RuntimeError("never")
        """,
        "Net",
    )
    assert answer["failed"] == "not-built"
    assert "# gradlint: input=" in answer["detail"]


# Devices


def test_cuda_idioms_are_harmless(lab: ModelLab) -> None:
    answer = lab.run(
        """
        device = torch.device("cuda:0")

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.DataParallel(nn.Linear(6, 6, device="cuda").cuda())
                self.norm = nn.SyncBatchNorm(6)
                self.shift = torch.zeros(6, device=device)
                self.to("cuda")

            def forward(self, x):
                with torch.autocast("cuda", dtype=torch.float16), torch.cuda.amp.autocast():
                    x = self.a(x.to(device, non_blocking=True).cuda(non_blocking=True))
                return self.norm(x + self.shift.to("cuda")) + torch.ones(6, device="cuda")
        """,
        "Net",
    )
    assert answer["with_gradient"] == 4, answer


def test_replacing_what_measures_is_tampering(lab: ModelLab) -> None:
    answer = lab.run(
        """
        class Net(nn.Linear):
            def __init__(self):
                super().__init__(4, 4)
                torch.autograd.grad = lambda *args, **kwargs: None

            def forward(self, x):
                return super().forward(x)
        """,
        "Net",
        min_depth=1,
    )
    assert answer["failed"] in ("tampered", "crash")
