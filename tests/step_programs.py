"""Training programs for the replay tests: each holds the clip twice, on a ``W|`` line (wrong place) and an ``R|`` line.

The wrong variant keeps the ``W|`` lines, the right one the ``R|`` lines; the other lines become blank, so that line
numbers are those of the text. A line without a mark belongs to both.
"""

from __future__ import annotations

import dataclasses
import textwrap


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A program, where to start it, and what is expected of its evidence."""

    name: str
    region: str
    text: str
    kind: str = "replay"
    values: tuple[tuple[str, str], ...] = ()

    def variant(self, mark: str) -> tuple[str, list[int]]:
        """The source of the wrong (``"W"``) or right (``"R"``) variant and the lines of its clip."""
        lines: list[str] = []
        marked: list[int] = []
        for number, line in enumerate(textwrap.dedent(self.text).lstrip("\n").splitlines(), 1):
            if line[:2] in ("W|", "R|"):
                keep = line[0] == mark
                if keep and "clip" in line.lower():
                    marked.append(number)
                lines.append(line[2:] if keep else "")
            else:
                lines.append(line)
        return "\n".join(lines) + "\n", marked


PROGRAMS: list[StepProgram] = [
    StepProgram(
        "tutorial",
        "",
        """
import torch
import torch.nn as nn
import torch.optim as optim

class SimpleNet(nn.Module):
    def __init__(self):
        super(SimpleNet, self).__init__()
        self.fc1 = nn.Linear(10, 20)
        self.bn1 = nn.BatchNorm1d(20)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(20, 1)

    def forward(self, x):
        return self.fc2(self.relu(self.bn1(self.fc1(x))))

model = SimpleNet()
x = torch.randn(32, 10)
y = torch.randn(32, 1)
outputs = model(x)
loss = nn.MSELoss()(outputs, y)
optimizer = optim.SGD(model.parameters(), lr=0.1)
W|torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
optimizer.zero_grad()
loss.backward()
R|torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
optimizer.step()
print(f"loss {loss.item():.4f}")
""",
        kind="replica",
    ),
    StepProgram(
        "flat-loop",
        "",
        """
import torch
from torch import nn, optim
from torch.nn.utils import clip_grad_norm_ as clip
model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
opt = optim.Adam(model.parameters(), lr=1e-3)
loss_fn = nn.CrossEntropyLoss()
data = [(torch.randn(8, 10), torch.randint(0, 3, (8,))) for _ in range(20)]
for epoch in range(100):
    for xb, yb in data:
        pred = model(xb)
        loss = loss_fn(pred, yb)
        opt.zero_grad()
W|        clip(model.parameters(), 0.5)
        loss.backward()
R|        clip(model.parameters(), 0.5)
        opt.step()
    print(epoch, loss.item())
""",
        kind="replica",
    ),
    StepProgram(
        "clip-at-the-top",
        "",
        """
import torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(1000):
W|    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    loss = model(torch.randn(16, 4)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
R|    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
""",
        kind="replica",
    ),
    StepProgram(
        "train-epoch",
        "train_epoch",
        """
import torch
import torch.nn.functional as F
from tqdm import tqdm

def train_epoch(model, loader, optimizer, criterion, device, epoch, args):
    model.train()
    running = 0.0
    bar = tqdm(loader, desc=f"epoch {epoch}")
    for i, (images, labels) in enumerate(bar):
        images, labels = images.to(device), labels.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        logits = model(images)
        loss = criterion(logits, labels)
        if torch.isnan(loss):
            continue
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        acc = (logits.argmax(1) == labels).float().mean()
        running += loss.item() * images.size(0)
        if i % args.log_every == 0:
            bar.set_postfix(loss=loss.item(), acc=acc.item())
    return running / len(loader.dataset)
""",
        values=(("args.max_grad_norm", "5.0"),),
    ),
    StepProgram(
        "trainer-class",
        "Trainer.train_epoch",
        """
import os
import torch
import wandb
from torch import nn
from .metrics import AverageMeter

class Trainer:
    def __init__(self, model, train_loader, cfg):
        self.model = model.cuda()
        self.loader = train_loader
        self.cfg = cfg
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=cfg.lr, weight_decay=cfg.wd)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=cfg.epochs)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=cfg.smooth)
        os.makedirs(cfg.out, exist_ok=True)

    def train_epoch(self, epoch):
        meter = AverageMeter()
        self.model.train()
        for batch in self.loader:
            x, y = batch["image"].cuda(), batch["label"].cuda()
            loss = self.compute_loss(x, y)
            self.optimizer.zero_grad()
W|            nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.clip)
            loss.backward()
R|            nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.clip)
            self.optimizer.step()
            meter.update(loss.item(), x.size(0))
            wandb.log({"loss": loss.item()})
        self.scheduler.step()
        return meter.avg

    def compute_loss(self, x, y):
        out = self.model(x)
        return self.criterion(out, y) + 0.1 * out.pow(2).mean()
""",
    ),
    StepProgram(
        "trainer-own-model",
        "Trainer.fit",
        """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.rnn = nn.LSTM(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2)
    def forward(self, x):
        h, _ = self.rnn(x)
        return self.head(h[:, -1])

class Trainer(object):
    def __init__(self, loader, lr=1e-2):
        self.net = Net()
        self.loader = loader
        self.opt = torch.optim.RMSprop(self.net.parameters(), lr=lr)

    def fit(self, epochs=10):
        for epoch in range(epochs):
            for x, y in self.loader:
                self.opt.zero_grad()
                loss = nn.functional.cross_entropy(self.net(x), y)
W|                nn.utils.clip_grad_norm_(self.net.parameters(), 0.25)
                loss.backward()
R|                nn.utils.clip_grad_norm_(self.net.parameters(), 0.25)
                self.opt.step()
""",
        kind="replica",
    ),
    StepProgram(
        "amp",
        "train_one_epoch",
        """
import torch
from torch.cuda.amp import autocast, GradScaler

def train_one_epoch(model, data_loader, optimizer, scheduler, max_norm=1.0):
    scaler = GradScaler()
    for step, batch in enumerate(data_loader):
        batch = {k: v.to("cuda") for k, v in batch.items()}
        with autocast():
            outputs = model(**batch)
            loss = outputs.loss
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
""",
    ),
    StepProgram(
        "amp-branches",
        "train",
        """
import torch
def train(net, loader, opt, args, scaler=None):
    for data, target in loader:
        data, target = data.cuda(), target.cuda()
        with torch.cuda.amp.autocast(enabled=scaler is not None):
            loss = torch.nn.functional.nll_loss(net(data), target)
        opt.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            if args.clip_grad:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(net.parameters(), args.clip_grad)
            scaler.step(opt)
            scaler.update()
        else:
            if args.clip_grad:
W|                torch.nn.utils.clip_grad_norm_(net.parameters(), args.clip_grad)
                pass
            loss.backward()
            if args.clip_grad:
R|                torch.nn.utils.clip_grad_norm_(net.parameters(), args.clip_grad)
                pass
            opt.step()
""",
    ),
    StepProgram(
        "accumulation",
        "train",
        """
import torch
def train(model, dl, optimizer, accum_steps=4, clip=1.0):
    optimizer.zero_grad()
    for i, (inputs, targets) in enumerate(dl):
        out = model(inputs)
        loss = torch.nn.functional.mse_loss(out, targets) / accum_steps
W|        if (i + 1) % accum_steps == 0: torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        loss.backward()
        if (i + 1) % accum_steps == 0 or (i + 1) == len(dl):
R|            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
""",
    ),
    StepProgram(
        "accumulation-unknown",
        "main",
        """
import argparse
import torch
from data import get_loader
from models import build_model

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--resume", type=str, default=None)
    parser.add_argument("--accum", type=int)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = get_loader(args)
    model = build_model(args).to(device)
    if args.resume is not None:
        model.load_state_dict(torch.load(args.resume))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        for i, batch in enumerate(loader):
            loss = model(batch) / args.accum
W|            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            loss.backward()
            if (i + 1) % args.accum != 0:
                continue
R|            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
        torch.save(model.state_dict(), "ckpt.pt")

if __name__ == "__main__":
    main()
""",
    ),
    StepProgram(
        "gan",
        "train",
        """
import torch
from torch.autograd import Variable
def train(netG, netD, optimizerG, optimizerD, dataloader, opt, criterion):
    for epoch in range(opt.niter):
        for i, data in enumerate(dataloader, 0):
            netD.zero_grad()
            real = data[0]
            b = real.size(0)
            label = torch.full((b,), 1.0)
            errD_real = criterion(netD(real), label)
W|            torch.nn.utils.clip_grad_norm_(netD.parameters(), 1.0)
            errD_real.backward()
            noise = torch.randn(b, opt.nz, 1, 1)
            fake = netG(noise)
            label.fill_(0)
            errD_fake = criterion(netD(fake.detach()), label)
            errD_fake.backward()
R|            torch.nn.utils.clip_grad_norm_(netD.parameters(), 1.0)
            optimizerD.step()
            netG.zero_grad()
            label.fill_(1)
            errG = criterion(netD(fake), label)
            errG.backward()
            torch.nn.utils.clip_grad_norm_(netG.parameters(), 1.0)
            optimizerG.step()
            if i % 50 == 0:
                print('[%d/%d] Loss_D: %.4f' % (epoch, opt.niter, errG.item()))
""",
    ),
    StepProgram(
        "gan-class",
        "GAN.fit",
        """
import itertools
import torch
class GAN:
    def __init__(self, generator, discriminator, cfg):
        self.generator = generator
        self.discriminator = discriminator
        self.opt_gen = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.opt_disc = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.cfg = cfg
    def fit(self, loader):
        for real, _ in loader:
            for _ in range(self.cfg.n_critic):
                z = torch.randn(4, 16)
                fake = self.generator(z)
                d_loss = -(self.discriminator(real).mean() - self.discriminator(fake.detach()).mean())
                self.opt_disc.zero_grad()
W|                torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), max_norm=0.1)
                d_loss.backward()
R|                torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), max_norm=0.1)
                self.opt_disc.step()
            self.opt_gen.zero_grad()
            g_loss = -self.discriminator(self.generator(z)).mean()
            g_loss.backward()
            self.opt_gen.step()
""",
    ),
    StepProgram(
        "lbfgs",
        "fit",
        """
import torch
def fit(model, x, y):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    for it in range(10):
        def closure():
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
W|            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            loss.backward()
R|            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            return loss
        optimizer.step(closure)
""",
    ),
    StepProgram(
        "closure-region",
        "train.<locals>.closure",
        """
import torch
def train(net, batches, lr=0.1):
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    for inp, tgt in batches:
        def closure():
            opt.zero_grad()
            out = net(inp)
            loss = ((out - tgt) ** 2).mean()
W|            torch.nn.utils.clip_grad_value_(net.parameters(), 0.5)
            loss.backward()
R|            torch.nn.utils.clip_grad_value_(net.parameters(), 0.5)
            return loss
        opt.step(closure)
""",
    ),
    StepProgram(
        "accelerate",
        "main",
        """
import torch
from accelerate import Accelerator
from transformers import get_scheduler, AutoModelForCausalLM
def main(args):
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    model = AutoModelForCausalLM.from_pretrained(args.name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    sched = get_scheduler("linear", optimizer, num_warmup_steps=10)
    loader = make_loader(args)
    model, optimizer, loader, sched = accelerator.prepare(model, optimizer, loader, sched)
    for epoch in range(args.epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
W|                if accelerator.sync_gradients: accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
R|                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                    pass
                optimizer.step()
                sched.step()
                optimizer.zero_grad()
""",
    ),
    StepProgram(
        "lightning-manual",
        "LitModel.training_step",
        """
import torch
import pytorch_lightning as pl
class LitModel(pl.LightningModule):
    def __init__(self, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        x, y = batch
        loss = torch.nn.functional.mse_loss(self(x), y)
        opt.zero_grad()
W|        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.manual_backward(loss)
R|        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        opt.step()
        self.log("loss", loss)
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
""",
        kind="replica",
    ),
    StepProgram(
        "lightning-gan",
        "Lit.training_step",
        """
import torch
import lightning as L
class Lit(L.LightningModule):
    def __init__(self, gen, disc):
        super().__init__()
        self.gen, self.disc = gen, disc
        self.automatic_optimization = False
    def training_step(self, batch, batch_idx):
        g_opt, d_opt = self.optimizers()
        fake = self.gen(batch)
        g_loss = -self.disc(fake).mean()
        self.toggle_optimizer(g_opt)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.untoggle_optimizer(g_opt)
        d_loss = self.disc(fake.detach()).mean() - self.disc(batch).mean()
        d_opt.zero_grad()
W|        torch.nn.utils.clip_grad_norm_(self.disc.parameters(), 0.5)
        self.manual_backward(d_loss)
R|        torch.nn.utils.clip_grad_norm_(self.disc.parameters(), 0.5)
        d_opt.step()
    def configure_optimizers(self):
        g = torch.optim.Adam(self.gen.parameters(), lr=1e-3)
        d = torch.optim.Adam(self.disc.parameters(), lr=1e-3)
        return [g, d], []
""",
    ),
    StepProgram(
        "helpers",
        "train_loop",
        """
import torch
import torch.nn as nn
def compute(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)
def clip_gradients(model, value):
    return nn.utils.clip_grad_norm_(model.parameters(), value)
def backprop(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
def update(optimizer, scheduler):
    optimizer.step()
    scheduler.step()
def train_loop(net, optim, sched, batches, cfg):
    for batch in batches:
        loss = compute(net, batch)
W|        clip_gradients(net, cfg["clip"])
        backprop(loss, optim)
R|        clip_gradients(net, cfg["clip"])
        update(optim, sched)
""",
    ),
    StepProgram(
        "script-with-ddp",
        "",
        """
import torch, torch.nn as nn, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from mydata import train_set
from mymodel import Model
dist.init_process_group("nccl")
rank = dist.get_rank()
torch.cuda.set_device(rank)
model = DDP(Model().to(rank), device_ids=[rank])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(train_set, batch_size=32, num_workers=8, shuffle=True)
if __name__ == "__main__":
    for epoch in range(90):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            out = model(x.to(rank))
            loss = nn.functional.cross_entropy(out, y.to(rank))
            optimizer.zero_grad()
W|            nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
            loss.backward()
R|            nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
            optimizer.step()
        if rank == 0:
            torch.save(model.module.state_dict(), f"ckpt_{epoch}.pt")
""",
    ),
    StepProgram(
        "real-dataset",
        "",
        """
import torch
from torch.utils.data import DataLoader, TensorDataset, Dataset
class Points(Dataset):
    def __init__(self, n=100):
        self.x = torch.randn(n, 6)
        self.y = self.x.sum(1, keepdim=True)
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        return self.x[i], self.y[i]
loader = DataLoader(Points(), batch_size=10, shuffle=True, num_workers=4, pin_memory=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).to(device)
optimizer = torch.optim.Adam(net.parameters())
mse = torch.nn.MSELoss()
def main():
    step = 0
    while step < 500:
        for x, y in loader:
            step += 1
            loss = mse(net(x.to(device)), y.to(device))
            net.zero_grad()
W|            gn = torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
            loss.backward()
R|            gn = torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
            optimizer.step()
main()
""",
        kind="replica",
    ),
    StepProgram(
        "reinforce",
        "Agent.update",
        """
import torch
import numpy as np
import gym
class Agent:
    def __init__(self, env_name, hidden=32):
        self.env = gym.make(env_name)
        self.actor = Actor(self.env.observation_space.shape[0], hidden)
        self.critic = Critic(self.env.observation_space.shape[0], hidden)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=1e-3)
        self.memory = []
    def update(self, n_epochs=4):
        states = torch.tensor(np.array([m[0] for m in self.memory]))
        returns = torch.tensor([m[2] for m in self.memory])
        for _ in range(n_epochs):
            values = self.critic(states).squeeze()
            adv = returns - values.detach()
            dist = torch.distributions.Categorical(logits=self.actor(states))
            ratio = torch.exp(dist.log_prob(self.actions) - self.old_log_probs)
            clipped = torch.clamp(ratio, 0.8, 1.2)
            actor_loss = -torch.min(ratio * adv, clipped * adv).mean() - 0.01 * dist.entropy().mean()
            self.actor_optimizer.zero_grad()
W|            torch.nn.utils.clip_grad_norm_(self.actor.parameters(), 0.5)
            actor_loss.backward()
R|            torch.nn.utils.clip_grad_norm_(self.actor.parameters(), 0.5)
            self.actor_optimizer.step()
            critic_loss = torch.nn.functional.mse_loss(values, returns)
            self.critic_optimizer.zero_grad()
            critic_loss.backward()
            torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 0.5)
            self.critic_optimizer.step()
""",
    ),
    StepProgram(
        "seq2seq",
        "train",
        """
import random
import torch
def train(input_tensor, target_tensor, encoder, decoder, encoder_optimizer, decoder_optimizer, criterion):
    encoder_hidden = encoder.initHidden()
    encoder_optimizer.zero_grad()
    decoder_optimizer.zero_grad()
    input_length = input_tensor.size(0)
    loss = 0
    for ei in range(input_length):
        encoder_output, encoder_hidden = encoder(input_tensor[ei], encoder_hidden)
    decoder_input = torch.tensor([[0]])
    decoder_hidden = encoder_hidden
    use_teacher_forcing = True if random.random() < 0.5 else False
    for di in range(target_tensor.size(0)):
        decoder_output, decoder_hidden = decoder(decoder_input, decoder_hidden)
        topv, topi = decoder_output.topk(1)
        decoder_input = target_tensor[di] if use_teacher_forcing else topi.squeeze().detach()
        loss += criterion(decoder_output, target_tensor[di])
W|    torch.nn.utils.clip_grad_norm_(encoder.parameters(), 0.25)
W|    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 0.25)
    loss.backward()
R|    torch.nn.utils.clip_grad_norm_(encoder.parameters(), 0.25)
R|    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 0.25)
    encoder_optimizer.step()
    decoder_optimizer.step()
    return loss.item() / target_tensor.size(0)
""",
    ),
    StepProgram(
        "step-by-step-function",
        "Learner._train_batch",
        """
import torch
class Learner:
    def __init__(self, model, loss_fn, opt_cls=torch.optim.Adam, **kw):
        self.model, self.loss_fn = model, loss_fn
        self.optim = opt_cls(self.model.parameters(), **kw)
        self.n_iter = 0
    def _train_batch(self, batch):
        self.model.train()
        xb, yb = batch
        try:
            loss = self.loss_fn(self.model(xb), yb)
        except RuntimeError as e:
            if "out of memory" in str(e):
                torch.cuda.empty_cache()
                return None
            raise e
        self.optim.zero_grad()
W|        torch.nn.utils.clip_grad.clip_grad_norm_(filter(lambda p: p.requires_grad, self.model.parameters()), 2.0)
        loss.backward()
R|        torch.nn.utils.clip_grad.clip_grad_norm_(filter(lambda p: p.requires_grad, self.model.parameters()), 2.0)
        self.optim.step()
        self.n_iter += 1
        return float(loss)
""",
    ),
    StepProgram(
        "iterator-style",
        "run",
        """
import torch
def run(model, train_loader, optimizer, iters, log):
    data_iter = iter(train_loader)
    it = 0
    while True:
        try:
            batch = next(data_iter)
        except StopIteration:
            data_iter = iter(train_loader)
            batch = next(data_iter)
        out = model(batch[0])
        losses = {"ce": torch.nn.functional.cross_entropy(out, batch[1]), "reg": 1e-4 * out.norm()}
        loss = sum(losses.values())
        for p in model.parameters():
            p.grad = None
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        it += 1
        if it >= iters:
            break
""",
    ),
    StepProgram(
        "hydra",
        "main",
        """
import hydra
import torch
from omegaconf import OmegaConf
@hydra.main(config_path="conf", config_name="config")
def main(cfg):
    torch.manual_seed(cfg.seed)
    model = hydra.utils.instantiate(cfg.model).cuda()
    optimizer = hydra.utils.instantiate(cfg.optimizer, model.parameters())
    loader = hydra.utils.instantiate(cfg.data)
    for epoch in range(cfg.epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = model.training_loss(batch)
W|            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
            loss.backward()
R|            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
            optimizer.step()
""",
    ),
    StepProgram(
        "param-groups",
        "train",
        """
import torch
def train(model, loader, cfg):
    optimizer = torch.optim.SGD([
        {"params": model.backbone.parameters(), "lr": cfg.lr * 0.1},
        {"params": model.head.parameters()},
    ], lr=cfg.lr, momentum=0.9)
    sched = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: (1 - e / cfg.epochs) ** 0.9)
    params = [p for g in optimizer.param_groups for p in g["params"]]
    for img, mask in loader:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(img), mask)
        optimizer.zero_grad()
W|        torch.nn.utils.clip_grad_norm_(params, 1.0)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        sched.step()
""",
    ),
    StepProgram(
        "apex",
        "train",
        """
import torch
try:
    from apex import amp
except ImportError:
    amp = None
def train(args, model, optimizer, train_dataloader):
    if args.fp16:
        model, optimizer = amp.initialize(model, optimizer, opt_level=args.fp16_opt_level)
    model.zero_grad()
    for step, batch in enumerate(train_dataloader):
        batch = tuple(t.to(args.device) for t in batch)
        inputs = {"input_ids": batch[0], "labels": batch[3]}
        loss = model(**inputs)[0]
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        if args.fp16:
            with amp.scale_loss(loss, optimizer) as scaled_loss:
                scaled_loss.backward()
        else:
            loss.backward()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        model.zero_grad()
""",
    ),
    StepProgram(
        "globals",
        "train",
        """
import torch
parser = make_parser()
args = parser.parse_args()
model = Net()
if args.cuda:
    model.cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
def train(epoch):
    model.train()
    for batch_idx, (data, target) in enumerate(train_loader):
        if args.cuda:
            data, target = data.cuda(), target.cuda()
        optimizer.zero_grad()
        output = model(data)
        loss = torch.nn.functional.nll_loss(output, target)
W|        torch.nn.utils.clip_grad_norm(model.parameters(), args.clip)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm(model.parameters(), args.clip)
        optimizer.step()
        if batch_idx % args.log_interval == 0:
            print('Train Epoch: {} [{}/{} ({:.0f}%)]\\tLoss: {:.6f}'.format(
                epoch, batch_idx * len(data), len(train_loader.dataset),
                100. * batch_idx / len(train_loader), loss.item()))
""",
    ),
]
