"""``gradlint probe``: the gradient profile of one model, as a person and as a program reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.test_cli import one_line_about

MODEL = """\
import torch
from torch import nn


class Deep(nn.Module):
    def __init__(self, width=32, depth=8, act="sigmoid"):
        super().__init__()
        self.act = getattr(torch, act)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return self.out(x)


def small():
    return Deep(depth=2)


net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
"""


@pytest.fixture
def folder(gradlint: Run) -> Path:
    folder: Path = gradlint.folder  # type: ignore[attr-defined]
    (folder / "net.py").write_text(MODEL)
    return folder


def test_each_layer_has_a_line_and_a_bar(gradlint: Run, folder: Path) -> None:
    completed = gradlint("probe", "net.py:Deep", "--arg", "depth=8")
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    lines = completed.stdout.splitlines()
    assert lines[0] == "net.py:5: Deep(depth=8)"
    rows = [line.split() for line in lines if line.startswith(("layers.", "out"))]
    assert [row[0] for row in rows] == [*(f"layers.{i}" for i in range(8)), "out"]
    bars = [sum(c in "█#" for c in "".join(row)) for row in rows]
    assert bars[0] < bars[4] < bars[8]
    assert any("sick" in line and "9 layers" in line for line in lines)
    assert any("healthy with ReLU and He init" in line for line in lines)


def test_arguments_and_inputs_are_the_users(gradlint: Run, folder: Path) -> None:
    completed = gradlint(
        "probe", "net.py:Deep", "--arg", "depth=3", "--arg", "act=relu", "--input", "6,32", "--format", "json"
    )
    assert completed.returncode == 0, completed.stderr
    document = json.loads(completed.stdout)
    assert document["version"] == 1
    assert document["input_shapes"] == [[6, 32]]
    assert [layer["path"] for layer in document["layers"]] == ["layers.0", "layers.1", "layers.2", "out"]
    assert all(layer["weight_gradient"] > 0 for layer in document["layers"])
    assert {layer["init"] for layer in document["layers"]} == {"default"}
    assert document["chains"][0]["depth"] == 4


@pytest.mark.parametrize(("name", "layers"), [("small", 3), ("net", 2)])
def test_functions_and_variables_are_models_too(gradlint: Run, folder: Path, name: str, layers: int) -> None:
    completed = gradlint("probe", f"net.py:{name}", "--format", "json")
    assert completed.returncode == 0, completed.stderr
    assert len(json.loads(completed.stdout)["layers"]) == layers


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["net.py"], "net.py:Net"),
        (["gone.py:Deep"], "no such file"),
        (["net.py:Gone"], "not defined"),
        (["net.py:Deep", "--input", "a,b"], "--input"),
        (["net.py:Deep", "--input", "0,32"], "--input"),
        (["net.py:Deep", "--arg", "depth"], "--arg"),
        (["net.py:Deep", "--input", "6,31"], "could not be built"),
        (["net.py:Deep", "--arg", "nothing=1"], "could not be built"),
    ],
)
def test_what_cannot_be_measured_is_one_line(gradlint: Run, folder: Path, arguments: list[str], word: str) -> None:
    one_line_about(gradlint("probe", *arguments), word)
