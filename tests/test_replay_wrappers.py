"""The replay of training frameworks, and of programs that need more than stand-ins to be run at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.test_replay import Event, Replay, of_kind


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    server = Replay()
    yield server
    server.close()


def letters(path: Mapping[str, Any]) -> str:
    """The events of a path: backward, clip, step, zero_grad, unscale; small where a framework fenced the call."""
    names = {"backward": "B", "clip": "C", "step": "S", "zero_grad": "Z", "unscale": "U"}
    shown = [e for e in path["events"] if e["kind"] in names]
    return "".join(names[e["kind"]].lower() if e.get("fenced") else names[e["kind"]] for e in shown)


def last_step(path: Mapping[str, Any]) -> Event:
    return of_kind(path, "step")[-1]


ACCELERATE = """
import torch
from accelerate import Accelerator
def main(args):
    accelerator = Accelerator({options})
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    model, optimizer, loader = accelerator.prepare(model, optimizer, get_loader())
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(batch["x"]).pow(2).mean()
            accelerator.backward(loss)
            {clip}
            optimizer.step()
            optimizer.zero_grad()
"""


def accelerate(options: str, clip: str = "pass") -> str:
    return ACCELERATE.format(options=options, clip=clip)


def test_accelerate_fences_all_but_the_last_micro_batch(replay: Replay) -> None:
    clip = "accelerator.clip_grad_norm_(model.parameters(), 1.0)"
    source = accelerate("gradient_accumulation_steps=4", clip)
    (path,) = replay.run(source, "main", [13])["paths"]
    assert letters(path) == "BCsz" * 3 + "BCSZ" + ("BCsz" * 3 + "BCSZ") * 2
    step = last_step(path)
    assert (step["contributions"], step["places"]) == (4, 1)
    source = accelerate("gradient_accumulation_steps=4", f"if accelerator.sync_gradients: {clip}")
    (path,) = replay.run(source, "main", [13])["paths"]
    assert letters(path) == ("Bsz" * 3 + "BCSZ") * 3


def test_an_unknown_number_of_micro_batches_is_run_as_one_and_as_two(replay: Replay) -> None:
    source = accelerate("gradient_accumulation_steps=args.accum")
    answer = replay.run(source, "main", [12])
    assert [letters(p) for p in answer["paths"]] == ["BSZ" * 3, "BszBSZ" * 3]
    assert answer["assumed"]["args.accum"] == 1
    answer = replay.run(source, "main", [12], same_batch=True)
    assert letters(answer["paths"][0]) == ("Bsz" * 3 + "BSZ") * 3
    step = last_step(answer["paths"][0])
    assert step["kept"] == pytest.approx(step["accumulated"], rel=1e-5)


def test_an_accelerator_from_outside_comes_with_what_it_prepared(replay: Replay) -> None:
    source = """
def train(accelerator, model, optimizer, loader):
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
"""
    answer = replay.run(source, "train", [5], same_batch=True)
    assert letters(answer["paths"][0]) == ("Bsz" * 3 + "BSZ") * 3


@pytest.mark.parametrize(
    ("options", "clip", "norm"),
    [
        ("mixed_precision='fp16'", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)", 1.0 / 65536),
        ("mixed_precision='fp16'", "accelerator.clip_grad_norm_(model.parameters(), 1.0)", 1.0),
        ("mixed_precision='bf16'", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)", 1.0),
    ],
)
def test_accelerate_in_half_precision_scales_and_unscales(replay: Replay, options: str, clip: str, norm: float) -> None:
    (path,) = replay.run(accelerate(options, clip), "main", [13])["paths"]
    assert last_step(path)["norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize(
    ("clip", "norm"),
    [
        ("fabric.clip_gradients(model, optimizer, max_norm=1.0)", 1.0),
        ("torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)", 1.0 / 65536),
    ],
)
def test_fabric_unscales_in_its_own_clip_only(replay: Replay, clip: str, norm: float) -> None:
    source = f"""
import torch
import lightning as L
def main():
    fabric = L.Fabric(precision="16-mixed")
    fabric.launch()
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = fabric.setup(model, optimizer)
    for i, batch in enumerate(fabric.setup_dataloaders(make_loader())):
        with fabric.no_backward_sync(model, enabled=(i + 1) % 2 != 0):
            fabric.backward(model(batch[0]).pow(2).mean())
        if (i + 1) % 2 == 0:
            {clip}
            optimizer.step()
            optimizer.zero_grad()
"""
    (path,) = replay.run(source, "main", [14])["paths"]
    step = last_step(path)
    assert step["norms"]["14"] == pytest.approx(norm, rel=1e-3)
    assert step["contributions"] == 2


def test_apex_unscales_on_the_way_out_of_its_block(replay: Replay) -> None:
    source = """
import torch
from apex import amp
def train(model, loader, args):
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    model, optimizer = amp.initialize(model, optimizer, opt_level="O1")
    for x, y in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        with amp.scale_loss(loss, optimizer) as scaled_loss:
            scaled_loss.backward()
            {inside}
        torch.nn.utils.clip_grad_norm_(amp.master_params(optimizer), {outside})
        optimizer.step()
"""
    clip = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
    (path,) = replay.run(source.format(inside="pass", outside="1.0"), "train", [13])["paths"]
    assert of_kind(path, "clip")[0]["saw"] == pytest.approx(10.0, rel=1e-3)
    assert last_step(path)["norm"] == pytest.approx(1.0, rel=1e-3)
    (path,) = replay.run(source.format(inside=clip, outside="1e9"), "train", [12])["paths"]
    assert of_kind(path, "clip")[0]["saw"] > 1e5
    assert last_step(path)["norm"] < 1e-3


def test_an_engine_clears_what_it_has_stepped_with(replay: Replay) -> None:
    source = """
import deepspeed
def main(args):
    engine, optimizer, loader, _ = deepspeed.initialize(args=args, model=Net(args), training_data=data)
    for batch in loader:
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
"""
    (path,) = replay.run(source, "main", [7], same_batch=True)["paths"]
    assert letters(path) == "BSZ" * 3
    assert [e["stale"] for e in of_kind(path, "backward")] == [0.0] * 3


def test_a_toggled_optimizer_is_the_only_one_that_gets_gradients(replay: Replay) -> None:
    source = """
import torch
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.gen = torch.nn.Linear(3, 3)
        self.disc = torch.nn.Linear(3, 1)
    def training_step(self, batch, batch_idx):
        opt_g, opt_d = self.optimizers()
        {toggle}
        opt_g.zero_grad()
        self.manual_backward(self.disc(self.gen(torch.ones(2, 3))).mean())
        opt_g.step()
    def configure_optimizers(self):
        return [torch.optim.SGD(self.gen.parameters(), lr=0.1), torch.optim.SGD(self.disc.parameters(), lr=0.1)]
"""
    for toggle, reached in (("self.toggle_optimizer(opt_g)", 2), ("pass", 4)):
        (path,) = replay.run(source.format(toggle=toggle), "Lit.training_step", [14])["paths"]
        assert {e["reached"] for e in of_kind(path, "backward")} == {reached}


def test_a_callable_scaler_asks_whether_it_is_to_step(replay: Replay) -> None:
    source = """
def train(model, loader, optimizer, loss_scaler, args):
    for i, x in enumerate(loader):
        loss = model(x).mean()
        update = (i + 1) % args.accum_steps == 0
        loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters(), need_update=update)
        if update:
            optimizer.zero_grad()
"""
    (path,) = replay.run(source, "train", [6], same_batch=True)["paths"]
    assert letters(path) == ("B" * 3 + "BCSZ") * 3


@pytest.mark.parametrize(
    "take",
    [
        "x = next(batches)",
        "x = xs[i]",
        "x = torch.randn(4, 3)",
        "x = xs[torch.randint(0, 8, ())]",
    ],
)
def test_one_batch_whatever_way_the_data_comes(replay: Replay, take: str) -> None:
    source = f"""
import torch
xs = torch.randn(8, 4, 3)
batches = iter(list(xs))
model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
for i in range(100):
    {take}
    model(x).pow(2).mean().backward()
    optimizer.step()
"""
    (path,) = replay.run(source, "", [9], same_batch=True)["paths"]
    sizes = [e["norm_unscaled"] for e in of_kind(path, "step")]
    assert sizes == pytest.approx([sizes[0], 2 * sizes[0], 3 * sizes[0]], rel=1e-5)


def test_a_model_that_is_too_slow_gives_way_to_a_stand_in(replay: Replay) -> None:
    source = """
import torch
from torch import nn
class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2048, 2048) for _ in range(24)])
    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x.mean()
def train():
    model = Big()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(1000):
        optimizer.zero_grad()
        model(torch.randn(4096, 2048)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
"""
    answer = replay.run(source, "train", [17])
    assert answer["kind"] == "replay"
    assert answer["assumed"]["Big"] == "stand-in model"
    assert letters(answer["paths"][0]) == "ZBCS" * 3


def test_a_rollout_is_left_early_and_unknown_nests_come_to_an_end(replay: Replay) -> None:
    source = """
import torch
def detached(h):
    return h.detach() if isinstance(h, torch.Tensor) else tuple(detached(v) for v in h)
def train(env, model, optimizer, hidden):
    while True:
        for t in range(100_000):
            with torch.no_grad():
                env.step(model(env.state))
        hidden = detached(hidden)
        optimizer.zero_grad()
        out, hidden = model(env.memory, hidden)
        (out.mean() * 0.5 + out.std() * 0.25 + out.abs().mean() * 0.125 + (out - out.mean()).pow(2).mean()).backward()
        optimizer.step()
"""
    (path,) = replay.run(source, "train", [13])["paths"]
    assert letters(path) == "ZBS" * 3


def test_a_program_believes_that_there_is_a_gpu(replay: Replay) -> None:
    source = """
import torch
def train(model, loader, optimizer, device):
    scaler = torch.cuda.amp.GradScaler(enabled=device.type == "cuda")
    assert torch.cuda.is_available()
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x.to(device)).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
"""
    answer = replay.run(source, "train", [8])
    assert of_kind(answer["paths"][0], "backward")[0]["scaled"]
    assert answer["paths"][0]["error"] is None


def test_a_step_reaches_what_only_a_loss_behind_it_shows(replay: Replay) -> None:
    """The optimizers of an unknown class turn up behind the first backward, and are there in the run that counts."""
    source = """
class Runner(Base):
    def handle(self, batch):
        loss = self.criterion(self.model["head"](self.model["encoder"](batch[0])), batch[1])
        self.engine.backward(loss)
        self.optimizer["encoder"].step()
        self.optimizer["head"].step()
        self.optimizer["encoder"].zero_grad()
        self.optimizer["head"].zero_grad()
"""
    path = replay.run(source, "Runner.handle", [5])["paths"][0]
    steps = of_kind(path, "step")
    assert len(steps) == 6
    assert all(e["fresh"] and e["norm"] > 0 for e in steps)
