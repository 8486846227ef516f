"""The prediction on paper beside the measurement: plain chains over activation, initialiser and depth.

    python benchmarks/predictions.py [--width 64] [--seeds 5]

Square chains first (the ones for which a finding prints the prediction), then chains whose width halves or doubles
from layer to layer, then convolutions. A cell agrees where the two are within half a decade of each other. Cells whose
measured ratio is not finite, or below 1e-30 in double precision, are left out and counted.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlint.facts.meanfield import predict

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "softsign": F.softsign,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
}
INITS = ("default", "xavier", "he", "orthogonal")
DEPTHS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30)
HALF_DECADE = math.sqrt(10.0)
FLOOR = 1e-30


def initialise(layer: nn.Module, init: str) -> None:
    """As the named initialiser does it; the bias becomes zero unless it is the default."""
    if init == "default":
        return
    weight = layer.weight
    assert isinstance(weight, Tensor)
    {"xavier": nn.init.xavier_uniform_, "he": nn.init.kaiming_normal_, "orthogonal": nn.init.orthogonal_}[init](weight)
    assert isinstance(layer.bias, Tensor)
    nn.init.zeros_(layer.bias)


def measured(layers: Sequence[nn.Module], act: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """First against last hidden weight gradient, each over sqrt(fan_in), for a random cotangent."""
    hidden = layers[:-1]
    for layer in hidden:
        x = act(layer(x))
    y = layers[-1](x)
    loss = (y * torch.randn_like(y)).sum()
    first, last = hidden[0].weight, hidden[-1].weight
    assert isinstance(first, Tensor)
    assert isinstance(last, Tensor)
    g_first, g_last = torch.autograd.grad(loss, [first, last], allow_unused=len(hidden) == 1)
    return float(g_first.norm() / math.sqrt(first[0].numel()) / (g_last.norm() / math.sqrt(last[0].numel())))


def cell(
    make: Callable[[], Sequence[nn.Module]], act: Callable[[Tensor], Tensor], shape: tuple[int, ...], seeds: int
) -> float:
    """The geometric median over the seeds."""
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        found.append(measured(make(), act, torch.randn(shape, dtype=torch.float64)))
    return sorted(found)[seeds // 2]


def linear_chain(widths: Sequence[int], init: str) -> list[nn.Module]:
    """Linear layers through the given widths."""
    layers: list[nn.Module] = [nn.Linear(a, b).double() for a, b in itertools.pairwise(widths)]
    for layer in layers:
        initialise(layer, init)
    return layers


def conv_chain(channels: int, depth: int, init: str) -> list[nn.Module]:
    """3x3 convolutions of one width on images of 12 by 12."""
    layers: list[nn.Module] = [nn.Conv2d(channels, channels, 3, padding=1).double() for _ in range(depth)]
    for layer in layers:
        initialise(layer, init)
    return layers


def report(title: str, cells: Sequence[tuple[str, str, int, float, float]]) -> None:
    """The share of cells that agree, as a whole and by activation, and the worst of them."""
    good = [c for c in cells if math.isfinite(c[3]) and c[3] > FLOOR and math.isfinite(c[4]) and c[4] > 0]
    agree = [c for c in good if 1 / HALF_DECADE <= c[3] / c[4] <= HALF_DECADE]
    print(f"{title}: {len(agree)} of {len(good)} within half a decade ({len(agree) / max(1, len(good)):.1%}), ", end="")
    print(f"{len(cells) - len(good)} left out")
    by_act = collections.Counter(c[0] for c in good)
    ok_act = collections.Counter(c[0] for c in agree)
    print("  " + ", ".join(f"{a} {ok_act[a]}/{by_act[a]}" for a in by_act))
    for act, init, depth, m, p in sorted(good, key=lambda c: -abs(math.log(c[3] / c[4])))[:5]:
        print(f"  off most: {act} {init} L={depth}: measured {m:.2e}, predicted {p:.2e}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds: dict[str, list[tuple[str, str, int, float, float]]] = collections.defaultdict(list)
    for name, act in ACTIVATIONS.items():
        for init in INITS:
            for depth in DEPTHS:
                hidden = depth - 1
                w = options.width
                shapes = {
                    "square": [w] * (depth + 1),
                    "halving": [max(8, 512 >> i) for i in range(depth)] + [10],
                    "doubling": [min(512, 8 << i) for i in range(depth)] + [10],
                }
                for kind, widths in shapes.items():
                    if kind != "square" and depth > 8:
                        continue
                    fans = widths[:hidden]
                    on_paper = predict([name] * hidden, [init] * hidden, fans)
                    got = cell(lambda v=widths, i=init: linear_chain(v, i), act, (128, widths[0]), options.seeds)
                    kinds[kind].append((name, init, depth, got, on_paper.rho_W if on_paper else math.nan))
                if depth <= 15:
                    on_paper = predict([name] * hidden, [init] * hidden, [9 * 16] * hidden)
                    got = cell(lambda d=depth, i=init: conv_chain(16, d, i), act, (16, 16, 12, 12), options.seeds)
                    kinds["convolutions"].append((name, init, depth, got, on_paper.rho_W if on_paper else math.nan))
    for kind, cells in kinds.items():
        report(kind, cells)


if __name__ == "__main__":
    main()
