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
    StepProgram(
        "fabric-passed-in",
        "train",
        """
import torch, time
def train(fabric, state, train_dataloader, speed_monitor, gradient_accumulation_iters, grad_clip):
    model = state["model"]
    optimizer = state["optimizer"]
    for train_data in train_dataloader:
        if state["iter_num"] >= max_iters:
            break
        lr = get_lr(state["iter_num"])
        for param_group in optimizer.param_groups:
            param_group["lr"] = lr
        input_ids = train_data[:, 0 : model.max_seq_length].contiguous()
        targets = train_data[:, 1 : model.max_seq_length + 1].contiguous()
        is_accumulating = (state["iter_num"] + 1) % gradient_accumulation_iters != 0
        with fabric.no_backward_sync(model, enabled=is_accumulating):
            logits = model(input_ids)
            loss = chunked_cross_entropy(logits, targets, chunk_size=0)
            fabric.backward(loss / gradient_accumulation_iters)
        if not is_accumulating:
R|            fabric.clip_gradients(model, optimizer, max_norm=grad_clip)
            optimizer.step()
W|            fabric.clip_gradients(model, optimizer, max_norm=grad_clip)
            optimizer.zero_grad()
        state["iter_num"] += 1
        t1 = time.perf_counter()
        if state["iter_num"] % log_interval == 0:
            fabric.print(f"iter {loss.item()}")
""",
    ),
    StepProgram(
        "deepspeed",
        "main",
        """
import torch, deepspeed
def main(args):
    model = Net(args)
    params = filter(lambda p: p.requires_grad, model.parameters())
    model_engine, optimizer, trainloader, __ = deepspeed.initialize(args=args, model=model, model_parameters=params, training_data=trainset)
    for epoch in range(args.epochs):
        for i, data in enumerate(trainloader):
            inputs, labels = data[0].to(model_engine.local_rank), data[1].to(model_engine.local_rank)
            outputs = model_engine(inputs)
            loss = torch.nn.functional.cross_entropy(outputs, labels)
W|            torch.nn.utils.clip_grad_norm_(model_engine.parameters(), 1.0)
            model_engine.backward(loss)
R|            torch.nn.utils.clip_grad_norm_(model_engine.parameters(), 1.0)
            model_engine.step()
""",
    ),
    StepProgram(
        "fsdp",
        "train",
        """
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(3, 3)
    def forward(self, x):
        return self.a(x)
def train(rank, loader):
    model = FSDP(Net().to(rank), device_id=rank)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x, y in loader:
        opt.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), y)
W|        model.clip_grad_norm_(1.0)
        loss.backward()
R|        model.clip_grad_norm_(1.0)
        opt.step()
""",
        kind="replica",
    ),
    StepProgram(
        "sam",
        "train",
        """
import torch
class SAM(torch.optim.Optimizer):
    def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, **kwargs):
        defaults = dict(rho=rho, adaptive=adaptive, **kwargs)
        super(SAM, self).__init__(params, defaults)
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)
    @torch.no_grad()
    def first_step(self, zero_grad=False):
        grad_norm = self._grad_norm()
        for group in self.param_groups:
            scale = group["rho"] / (grad_norm + 1e-12)
            for p in group["params"]:
                if p.grad is None: continue
                self.state[p]["old_p"] = p.data.clone()
                e_w = p.grad * scale.to(p)
                p.add_(e_w)
        if zero_grad: self.zero_grad()
    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad: self.zero_grad()
    def _grad_norm(self):
        return torch.norm(torch.stack([p.grad.norm(p=2) for group in self.param_groups for p in group["params"] if p.grad is not None]), p=2)
def train(model, loader, args):
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=args.rho, lr=args.lr, momentum=0.9)
    for x, y in loader:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.first_step(zero_grad=True)
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        torch.nn.functional.cross_entropy(model(x), y).backward()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.second_step(zero_grad=True)
""",
    ),
    StepProgram(
        "sam-unknown",
        "train",
        """
import torch
from sam import SAM
def train(model, loader, args):
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for x, y in loader:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.first_step(zero_grad=True)
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        torch.nn.functional.cross_entropy(model(x), y).backward()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.second_step(zero_grad=True)
""",
    ),
    StepProgram(
        "optimizers-in-a-dict",
        "Model.optimize",
        """
import torch
from collections import OrderedDict
class Model:
    def __init__(self, opt):
        self.nets = {"G": define_G(opt), "D": define_D(opt)}
        self.optimizers = {k: torch.optim.Adam(n.parameters(), lr=opt.lr) for k, n in self.nets.items()}
        self.opt = opt
    def optimize(self, data):
        for k in ("G", "D"):
            self.optimizers[k].zero_grad()
            loss = self.nets[k](data["x"]).mean()
W|            torch.nn.utils.clip_grad_norm_(self.nets[k].parameters(), self.opt.clip)
            loss.backward()
R|            torch.nn.utils.clip_grad_norm_(self.nets[k].parameters(), self.opt.clip)
            self.optimizers[k].step()
""",
    ),
    StepProgram(
        "zip-of-models-and-optimizers",
        "train",
        """
import torch
def train(models, optimizers, loader, cfg):
    for batch in loader:
        for model, opt in zip(models, optimizers):
            opt.zero_grad()
            loss = model(batch).mean()
W|            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
            loss.backward()
R|            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
            opt.step()
""",
    ),
    StepProgram(
        "lists-as-attributes",
        "Trainer.step",
        """
import torch
class Trainer:
    def step(self, batch):
        losses = self.compute(batch)
        for opt in self.optimizers:
            opt.zero_grad()
        total = sum(losses)
W|        for m in self.models: torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        total.backward()
R|        for m in self.models: torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        for opt in self.optimizers:
            opt.step()
""",
    ),
    StepProgram(
        "partial",
        "train",
        """
import torch, functools
from torch.nn.utils import clip_grad_norm_
def train(net, data, opt, cfg):
    clip = functools.partial(clip_grad_norm_, max_norm=2.0)
    step = lambda: (clip(net.parameters()), opt.step())
    for x in data:
        opt.zero_grad()
        loss = net(x).sum()
W|        clip(net.parameters())
        loss.backward()
R|        clip(net.parameters())
        opt.step()
""",
    ),
    StepProgram(
        "lightning-clip-gradients",
        "Lit.training_step",
        """
import torch
import lightning.pytorch as pl
class Lit(pl.LightningModule):
    def __init__(self, cfg):
        super().__init__()
        self.automatic_optimization = False
        self.gen = Generator(cfg)
        self.disc = Discriminator(cfg)
        self.clip = cfg.clip
    def training_step(self, batch, batch_idx):
        opt_g, opt_d = self.optimizers()
        sch = self.lr_schedulers()
        self.toggle_optimizer(opt_g)
        fake = self.gen(batch["x"])
        loss_g = -self.disc(fake).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_g)
W|        opt_g.step()
        self.clip_gradients(opt_g, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
R|        opt_g.step()
        self.untoggle_optimizer(opt_g)
        with self.toggled_optimizer(opt_d):
            loss_d = self.disc(fake.detach()).mean() - self.disc(batch["y"]).mean()
            opt_d.zero_grad()
            self.manual_backward(loss_d)
            opt_d.step()
        self.log_dict({"g": loss_g, "d": loss_d}, prog_bar=True)
        if self.trainer.is_last_batch:
            sch.step()
    def configure_optimizers(self):
        g = torch.optim.Adam(self.gen.parameters(), lr=2e-4)
        d = torch.optim.Adam(self.disc.parameters(), lr=2e-4)
        return {"optimizer": g}, {"optimizer": d, "lr_scheduler": None}
""",
    ),
    StepProgram(
        "wrapped-optimizers",
        "train",
        """
import torch
from lookahead import Lookahead
import horovod.torch as hvd
def train(model, loader):
    base = torch.optim.Adam(model.parameters())
    opt = Lookahead(base, k=5)
    opt = hvd.DistributedOptimizer(opt, named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    for x in loader:
        opt.zero_grad()
        model(x).mean().backward()
        opt.synchronize()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with opt.skip_synchronize():
            opt.step()
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
""",
    ),
    StepProgram(
        "apex-fp16-optimizer",
        "train",
        """
import torch
from apex.optimizers import FusedAdam, FP16_Optimizer
def train(model, loader, args):
    optimizer = FusedAdam(model.parameters(), lr=args.lr)
    optimizer = FP16_Optimizer(optimizer, dynamic_loss_scale=True)
    for x in loader:
        loss = model(x).mean()
        optimizer.zero_grad()
        optimizer.backward(loss)
R|        optimizer.clip_master_grads(args.clip)
        optimizer.step()
W|        optimizer.clip_master_grads(args.clip)
""",
    ),
    StepProgram(
        "trainer-30attrs",
        "Trainer._run_batch",
        """
import torch, logging
from .base import BaseTrainer
logger = logging.getLogger(__name__)
class Trainer(BaseTrainer):
    def _run_batch(self, batch, i):
        x, y = self._unpack(batch)
        with self.autocast_ctx:
            out = self.model(x, **self.model_kwargs)
            losses = self.loss_computer(out, y, step=self.global_step)
            loss = sum(v * self.loss_weights.get(k, 1.0) for k, v in losses.items()) / self.cfg.train.accum
W|        torch.nn.utils.clip_grad_norm_(self.trainable_params, self.cfg.train.clip)
        if self.scaler is not None:
            self.scaler.scale(loss).backward()
        else:
            loss.backward()
        if (i + 1) % self.cfg.train.accum == 0:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
R|            torch.nn.utils.clip_grad_norm_(self.trainable_params, self.cfg.train.clip)
            if self.scaler is not None:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.lr_scheduler.step()
            if self.ema: self.ema.update(self.model)
        for cb in self.callbacks:
            cb.on_step_end(self)
        self.meters["loss"].update(loss.item(), x.shape[0])
        self.global_step += 1
        return {k: v.detach() for k, v in losses.items()}
""",
    ),
    StepProgram(
        "wgan-gp",
        "train",
        """
import torch
from torch import autograd
def gradient_penalty(D, real, fake, device):
    alpha = torch.rand(real.size(0), 1, 1, 1, device=device)
    inter = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
    d = D(inter)
    grads = autograd.grad(outputs=d, inputs=inter, grad_outputs=torch.ones(d.size(), device=device), create_graph=True, retain_graph=True)[0]
    grads = grads.view(grads.size(0), -1)
    return ((grads.norm(2, dim=1) - 1) ** 2).mean()
def train(G, D, loader, opt_g, opt_d, cfg, device):
    for epoch in range(cfg.epochs):
        for i, (real, _) in enumerate(loader):
            real = real.to(device)
            z = torch.randn(real.size(0), cfg.nz, 1, 1, device=device)
            fake = G(z).detach()
            d_loss = D(fake).mean() - D(real).mean() + cfg.lam * gradient_penalty(D, real, fake, device)
            opt_d.zero_grad()
W|            torch.nn.utils.clip_grad_norm_(D.parameters(), cfg.clip)
            d_loss.backward()
R|            torch.nn.utils.clip_grad_norm_(D.parameters(), cfg.clip)
            opt_d.step()
            if i % cfg.n_critic == 0:
                g_loss = -D(G(z)).mean()
                opt_g.zero_grad()
                g_loss.backward()
                opt_g.step()
""",
    ),
    StepProgram(
        "sac",
        "SAC.update",
        """
import copy
import numpy as np
import torch
import torch.nn.functional as F
from buffer import ReplayBuffer
class SAC:
    def __init__(self, obs_dim, act_dim, args):
        self.actor = Actor(obs_dim, act_dim).to(args.device)
        self.q1 = Critic(obs_dim, act_dim).to(args.device)
        self.q2 = Critic(obs_dim, act_dim).to(args.device)
        self.q1_t, self.q2_t = copy.deepcopy(self.q1), copy.deepcopy(self.q2)
        self.log_alpha = torch.tensor(np.log(args.alpha), requires_grad=True)
        self.q_opt = torch.optim.Adam(list(self.q1.parameters()) + list(self.q2.parameters()), lr=args.q_lr)
        self.a_opt = torch.optim.Adam(self.actor.parameters(), lr=args.pi_lr)
        self.alpha_opt = torch.optim.Adam([self.log_alpha], lr=args.pi_lr)
        self.buf = ReplayBuffer(obs_dim, act_dim, args.size)
        self.args = args
    def update(self):
        if self.buf.size < self.args.batch:
            return
        o, a, r, o2, d = self.buf.sample(self.args.batch)
        with torch.no_grad():
            a2, logp2 = self.actor.sample(o2)
            target = r + (1 - d) * self.args.gamma * (torch.min(self.q1_t(o2, a2), self.q2_t(o2, a2)) - self.log_alpha.exp() * logp2)
        q_loss = F.mse_loss(self.q1(o, a), target) + F.mse_loss(self.q2(o, a), target)
        self.q_opt.zero_grad()
W|        torch.nn.utils.clip_grad_norm_(self.q1.parameters(), self.args.clip)
        q_loss.backward()
R|        torch.nn.utils.clip_grad_norm_(self.q1.parameters(), self.args.clip)
        self.q_opt.step()
        pi, logp = self.actor.sample(o)
        pi_loss = (self.log_alpha.exp().detach() * logp - torch.min(self.q1(o, pi), self.q2(o, pi))).mean()
        self.a_opt.zero_grad(); pi_loss.backward(); self.a_opt.step()
        alpha_loss = -(self.log_alpha * (logp + self.args.target_ent).detach()).mean()
        self.alpha_opt.zero_grad(); alpha_loss.backward(); self.alpha_opt.step()
        for p, pt in zip(self.q1.parameters(), self.q1_t.parameters()):
            pt.data.copy_(self.args.tau * p.data + (1 - self.args.tau) * pt.data)
""",
    ),
    StepProgram(
        "numpy-mask",
        "train_step",
        """
import numpy as np
import torch
import torch.nn.functional as F
def train_step(model, batch, optimizer, criterion, vocab, rng=np.random.default_rng(0)):
    tokens = torch.from_numpy(np.asarray(batch.tokens)).long().cuda()
    lengths = np.array([len(t) for t in batch.texts])
    mask = torch.arange(tokens.size(1))[None, :] < torch.as_tensor(lengths)[:, None]
    order = np.argsort(-lengths)
    tokens, mask = tokens[order.copy()], mask[order.copy()]
    logits = model(tokens, mask)
    flat = logits[mask][:, :vocab.size]
    weights = torch.tensor(rng.uniform(size=len(lengths)), dtype=torch.float)
    loss = (F.cross_entropy(flat, tokens[mask], reduction="none") * weights.repeat_interleave(torch.tensor(lengths))).sum()
    loss = loss / max(1, mask.sum().item())
    optimizer.zero_grad()
W|    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    loss.backward()
R|    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    optimizer.step()
    return loss.item(), np.mean(lengths)
""",
    ),
    StepProgram(
        "dist",
        "worker",
        """
import os
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data.distributed import DistributedSampler
from model import build
from tqdm.auto import tqdm
def worker(gpu, ngpus, args):
    dist.init_process_group(backend=args.backend, init_method=args.url, world_size=ngpus, rank=gpu)
    torch.cuda.set_device(gpu)
    model = build(args).cuda(gpu)
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ddp = torch.nn.parallel.DistributedDataParallel(model, device_ids=[gpu], find_unused_parameters=True)
    opt = torch.optim.SGD(ddp.parameters(), lr=args.lr * ngpus, momentum=0.9)
    sampler = DistributedSampler(args.dataset, shuffle=True)
    loader = torch.utils.data.DataLoader(args.dataset, sampler=sampler, batch_size=args.bs)
    pbar = tqdm(range(args.epochs), disable=dist.get_rank() != 0)
    for epoch in pbar:
        sampler.set_epoch(epoch)
        dist.barrier()
        for it, (img, lab) in enumerate(loader):
            img, lab = img.cuda(gpu, non_blocking=True), lab.cuda(gpu, non_blocking=True)
            sync = (it + 1) % args.acc == 0
            ctx = ddp.no_sync() if not sync else open(os.devnull)
            with ctx:
                loss = torch.nn.functional.cross_entropy(ddp(img), lab) / args.acc
W|                torch.nn.utils.clip_grad_norm_(ddp.parameters(), args.clip)
                loss.backward()
            if not sync: continue
R|            torch.nn.utils.clip_grad_norm_(ddp.parameters(), args.clip)
            opt.step()
            opt.zero_grad()
            red = loss.detach().clone(); dist.all_reduce(red); red /= dist.get_world_size()
            pbar.set_postfix({"loss": red.item(), "it": f"{it}/{len(loader)}"})
        if gpu == 0: torch.save({"m": ddp.module.state_dict()}, args.out)
def main():
    mp.spawn(worker, nprocs=torch.cuda.device_count(), args=(torch.cuda.device_count(), parse_args()))
""",
    ),
    StepProgram(
        "detr",
        "train_one_epoch",
        """
import math, sys
from typing import Iterable
import torch
import util.misc as utils
def train_one_epoch(model: torch.nn.Module, criterion: torch.nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer, device: torch.device, epoch: int, max_norm: float = 0):
    model.train(); criterion.train()
    metric_logger = utils.MetricLogger(delimiter="  ")
    metric_logger.add_meter('lr', utils.SmoothedValue(window_size=1, fmt='{value:.6f}'))
    header = 'Epoch: [{}]'.format(epoch)
    for samples, targets in metric_logger.log_every(data_loader, 10, header):
        samples = samples.to(device)
        targets = [{k: v.to(device) for k, v in t.items()} for t in targets]
        outputs = model(samples)
        loss_dict = criterion(outputs, targets)
        weight_dict = criterion.weight_dict
        losses = sum(loss_dict[k] * weight_dict[k] for k in loss_dict.keys() if k in weight_dict)
        loss_dict_reduced = utils.reduce_dict(loss_dict)
        losses_reduced_scaled = sum(v for v in loss_dict_reduced.values())
        loss_value = losses_reduced_scaled.item()
        if not math.isfinite(loss_value):
            print("Loss is {}, stopping training".format(loss_value)); sys.exit(1)
        optimizer.zero_grad()
W|        if max_norm > 0: torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        losses.backward()
        if max_norm > 0:
R|            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            pass
        optimizer.step()
        metric_logger.update(loss=loss_value, **loss_dict_reduced)
    return {k: meter.global_avg for k, meter in metric_logger.meters.items()}
""",
    ),
    StepProgram(
        "rnn-lm",
        "train",
        """
import argparse, math, time
import torch, torch.nn as nn
import data, model
parser = argparse.ArgumentParser()
parser.add_argument('--emsize', type=int, default=32)
parser.add_argument('--clip', type=float, default=0.25)
parser.add_argument('--bptt', type=int, default=35)
parser.add_argument('--lr', type=float, default=20)
parser.add_argument('--cuda', action='store_true')
args = parser.parse_args()
device = torch.device("cuda" if args.cuda else "cpu")
corpus = data.Corpus(args.data)
ntokens = len(corpus.dictionary)
model = model.RNNModel(args.model, ntokens, args.emsize).to(device)
criterion = nn.NLLLoss()
def repackage_hidden(h):
    if isinstance(h, torch.Tensor):
        return h.detach()
    else:
        return tuple(repackage_hidden(v) for v in h)
def get_batch(source, i):
    seq_len = min(args.bptt, len(source) - 1 - i)
    return source[i:i+seq_len], source[i+1:i+1+seq_len].view(-1)
train_data = batchify(corpus.train, 20)
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
def train():
    model.train()
    total_loss = 0.
    hidden = model.init_hidden(20)
    for batch, i in enumerate(range(0, train_data.size(0) - 1, args.bptt)):
        data, targets = get_batch(train_data, i)
        optimizer.zero_grad()
        hidden = repackage_hidden(hidden)
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        total_loss += loss.item()
        if batch % 200 == 0 and batch > 0:
            print('ppl {:8.2f}'.format(math.exp(total_loss / 200)))
try:
    for epoch in range(1, 40):
        train()
except KeyboardInterrupt:
    print('Exiting')
""",
    ),
    StepProgram(
        "ppo",
        "PPO.update",
        """
import torch
import torch.nn as nn
from torch.distributions import Categorical
class ActorCritic(nn.Module):
    def __init__(self, s, a, h=32):
        super().__init__()
        self.pi = nn.Sequential(nn.Linear(s, h), nn.Tanh(), nn.Linear(h, a))
        self.v = nn.Sequential(nn.Linear(s, h), nn.Tanh(), nn.Linear(h, 1))
    def evaluate(self, s, a):
        d = Categorical(logits=self.pi(s))
        return d.log_prob(a), self.v(s).squeeze(-1), d.entropy()
class PPO:
    def __init__(self, s_dim, a_dim, lr=3e-4, K=4, eps=0.2):
        self.policy = ActorCritic(s_dim, a_dim)
        self.old = ActorCritic(s_dim, a_dim)
        self.old.load_state_dict(self.policy.state_dict())
        self.opt = torch.optim.Adam(self.policy.parameters(), lr=lr)
        self.K, self.eps = K, eps
    def update(self, memory):
        rewards, R = [], 0
        for r, done in zip(reversed(memory.rewards), reversed(memory.dones)):
            R = r + 0.99 * R * (1 - done)
            rewards.insert(0, R)
        rewards = torch.tensor(rewards, dtype=torch.float32)
        rewards = (rewards - rewards.mean()) / (rewards.std() + 1e-7)
        states = torch.squeeze(torch.stack(memory.states, dim=0)).detach()
        actions = torch.squeeze(torch.stack(memory.actions, dim=0)).detach()
        old_lp = torch.squeeze(torch.stack(memory.logprobs, dim=0)).detach()
        for _ in range(self.K):
            lp, v, ent = self.policy.evaluate(states, actions)
            ratios = torch.exp(lp - old_lp)
            adv = rewards - v.detach()
            loss = -torch.min(ratios * adv, torch.clamp(ratios, 1 - self.eps, 1 + self.eps) * adv) + 0.5 * nn.MSELoss()(v, rewards) - 0.01 * ent
            self.opt.zero_grad()
W|            nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
            loss.mean().backward()
R|            nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
            self.opt.step()
        memory.clear()
""",
        kind="replica",
    ),
    StepProgram(
        "hf-script",
        "main",
        """
import os, random, logging
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from tqdm import tqdm, trange
from transformers import (WEIGHTS_NAME, AdamW, BertConfig, BertForSequenceClassification, BertTokenizer, get_linear_schedule_with_warmup)
def main(args):
    tokenizer = BertTokenizer.from_pretrained(args.model)
    model = BertForSequenceClassification.from_pretrained(args.model)
    model.to(args.device)
    no_decay = ["bias", "LayerNorm.weight"]
    grouped = [
        {"params": [p for n, p in model.named_parameters() if not any(nd in n for nd in no_decay)], "weight_decay": args.wd},
        {"params": [p for n, p in model.named_parameters() if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
    ]
    optimizer = AdamW(grouped, lr=args.learning_rate, eps=args.adam_epsilon)
    scheduler = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=args.warmup, num_training_steps=args.total)
    train_dataloader = DataLoader(load(args, tokenizer), sampler=RandomSampler(load(args, tokenizer)), batch_size=args.bs)
    if args.n_gpu > 1: model = torch.nn.DataParallel(model)
    global_step, tr_loss = 0, 0.0
    for _ in trange(int(args.num_train_epochs), desc="Epoch", disable=args.local_rank not in [-1, 0]):
        for step, batch in enumerate(tqdm(train_dataloader, desc="Iteration")):
            model.train()
            batch = tuple(t.to(args.device) for t in batch)
            inputs = {"input_ids": batch[0], "attention_mask": batch[1], "labels": batch[3]}
            if args.model_type != "distilbert":
                inputs["token_type_ids"] = batch[2] if args.model_type in ["bert", "xlnet"] else None
            outputs = model(**inputs)
            loss = outputs[0]
            if args.n_gpu > 1: loss = loss.mean()
            if args.gradient_accumulation_steps > 1:
                loss = loss / args.gradient_accumulation_steps
W|            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            loss.backward()
            tr_loss += loss.item()
            if (step + 1) % args.gradient_accumulation_steps == 0:
R|                torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                scheduler.step()
                model.zero_grad()
                global_step += 1
                if args.save_steps > 0 and global_step % args.save_steps == 0:
                    model_to_save = model.module if hasattr(model, "module") else model
                    model_to_save.save_pretrained(os.path.join(args.out, f"ckpt-{global_step}"))
            if args.max_steps > 0 and global_step > args.max_steps: break
    return global_step, tr_loss / global_step
""",
    ),
    StepProgram(
        "cyclegan-base",
        "CycleGANModel.optimize_parameters",
        """
import itertools
import torch
from util.image_pool import ImagePool
from .base_model import BaseModel
from . import networks
class CycleGANModel(BaseModel):
    def __init__(self, opt):
        BaseModel.__init__(self, opt)
        self.netG_A = networks.define_G(opt.input_nc, opt.output_nc, opt.ngf, gpu_ids=self.gpu_ids)
        self.netG_B = networks.define_G(opt.output_nc, opt.input_nc, opt.ngf, gpu_ids=self.gpu_ids)
        if self.isTrain:
            self.netD_A = networks.define_D(opt.output_nc)
            self.netD_B = networks.define_D(opt.input_nc)
            self.criterionGAN = networks.GANLoss(opt.gan_mode).to(self.device)
            self.optimizer_G = torch.optim.Adam(itertools.chain(self.netG_A.parameters(), self.netG_B.parameters()), lr=opt.lr)
            self.optimizer_D = torch.optim.Adam(itertools.chain(self.netD_A.parameters(), self.netD_B.parameters()), lr=opt.lr)
            self.optimizers.append(self.optimizer_G)
    def set_input(self, input):
        self.real_A = input['A'].to(self.device)
    def forward(self):
        self.fake_B = self.netG_A(self.real_A)
        self.rec_A = self.netG_B(self.fake_B)
    def backward_D_basic(self, netD, real, fake):
        loss_D = (self.criterionGAN(netD(real), True) + self.criterionGAN(netD(fake.detach()), False)) * 0.5
        loss_D.backward()
        return loss_D
    def backward_G(self):
        self.loss_G = self.criterionGAN(self.netD_A(self.fake_B), True) + (self.rec_A - self.real_A).abs().mean()
        self.loss_G.backward()
    def optimize_parameters(self):
        self.forward()
        self.set_requires_grad([self.netD_A, self.netD_B], False)
        self.optimizer_G.zero_grad()
W|        torch.nn.utils.clip_grad_norm_(itertools.chain(self.netG_A.parameters(), self.netG_B.parameters()), 1.0)
        self.backward_G()
R|        torch.nn.utils.clip_grad_norm_(itertools.chain(self.netG_A.parameters(), self.netG_B.parameters()), 1.0)
        self.optimizer_G.step()
        self.set_requires_grad([self.netD_A, self.netD_B], True)
        self.optimizer_D.zero_grad()
        self.backward_D_basic(self.netD_A, self.real_A, self.fake_B)
        self.backward_D_basic(self.netD_B, self.real_A, self.rec_A)
        self.optimizer_D.step()
""",
    ),
    StepProgram(
        "tf-transformer-noam",
        "run_epoch",
        """
import torch, time
class NoamOpt:
    def __init__(self, model_size, factor, warmup, optimizer):
        self.optimizer = optimizer
        self._step = 0
        self.warmup, self.factor, self.model_size, self._rate = warmup, factor, model_size, 0
    def step(self):
        self._step += 1
        rate = self.rate()
        for p in self.optimizer.param_groups:
            p['lr'] = rate
        self._rate = rate
        self.optimizer.step()
    def zero_grad(self):
        self.optimizer.zero_grad()
    def rate(self, step=None):
        if step is None: step = self._step
        return self.factor * (self.model_size ** (-0.5) * min(step ** (-0.5), step * self.warmup ** (-1.5)))
def run_epoch(data_iter, model, generator, criterion, cfg):
    opt = NoamOpt(cfg.d_model, 1, 400, torch.optim.Adam(model.parameters(), lr=0, betas=(0.9, 0.98), eps=1e-9))
    total_tokens = total_loss = tokens = 0
    start = time.time()
    for i, batch in enumerate(data_iter):
        out = model.forward(batch.src, batch.trg, batch.src_mask, batch.trg_mask)
        loss = criterion(generator(out), batch.trg_y) / batch.ntokens
W|        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        opt.step()
        opt.zero_grad()
        total_loss += loss.item() * batch.ntokens
        total_tokens += batch.ntokens
        if i % 50 == 1:
            elapsed = time.time() - start
            print("%d %f %f" % (i, loss / batch.ntokens, tokens / elapsed))
    return total_loss / total_tokens
""",
    ),
    StepProgram(
        "lbfgs-pinn",
        "PINN.train",
        """
import torch, numpy as np
from collections import OrderedDict
class DNN(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.depth = len(layers) - 1
        ls = []
        for i in range(self.depth - 1):
            ls.append(('layer_%d' % i, torch.nn.Linear(layers[i], layers[i + 1])))
            ls.append(('activation_%d' % i, torch.nn.Tanh()))
        ls.append(('out', torch.nn.Linear(layers[-2], layers[-1])))
        self.layers = torch.nn.Sequential(OrderedDict(ls))
    def forward(self, x): return self.layers(x)
class PINN:
    def __init__(self, X, u, layers, lb, ub):
        self.x = torch.tensor(X[:, 0:1], requires_grad=True).float()
        self.t = torch.tensor(X[:, 1:2], requires_grad=True).float()
        self.u = torch.tensor(u).float()
        self.dnn = DNN(layers)
        self.optimizer = torch.optim.LBFGS(self.dnn.parameters(), lr=1.0, max_iter=20, line_search_fn="strong_wolfe")
        self.iter = 0
    def loss_func(self):
        self.optimizer.zero_grad()
        u_pred = self.dnn(torch.cat([self.x, self.t], dim=1))
        u_x = torch.autograd.grad(u_pred, self.x, grad_outputs=torch.ones_like(u_pred), retain_graph=True, create_graph=True)[0]
        loss = torch.mean((self.u - u_pred) ** 2) + torch.mean(u_x ** 2)
W|        torch.nn.utils.clip_grad_norm_(self.dnn.parameters(), 1.0)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(self.dnn.parameters(), 1.0)
        self.iter += 1
        if self.iter % 100 == 0: print(loss.item())
        return loss
    def train(self):
        self.dnn.train()
        self.optimizer.step(self.loss_func)
""",
        kind="replica",
    ),
    StepProgram(
        "seq2seq-class",
        "Solver.train_epoch",
        """
import torch
class Solver:
    def __init__(self, config, loaders):
        self.config = config
        self.encoder = None; self.decoder = None
        self.build_model()
    def build_model(self):
        self.encoder = Encoder(self.config.hidden).to(self.config.device)
        self.decoder = Decoder(self.config.hidden).to(self.config.device)
        params = list(self.encoder.parameters()) + list(self.decoder.parameters())
        self.params = [p for p in params if p.requires_grad]
        self.opt = torch.optim.Adam(self.params, self.config.lr, [self.config.beta1, self.config.beta2])
    def reset_grad(self):
        self.encoder.zero_grad()
        self.decoder.zero_grad()
    def train_epoch(self, epoch):
        for i, (src, trg, lens) in enumerate(self.train_loader):
            enc, h = self.encoder(src, lens)
            loss = 0
            inp = trg[:, 0]
            for t in range(1, trg.size(1)):
                out, h = self.decoder(inp, h, enc)
                loss += torch.nn.functional.nll_loss(out, trg[:, t])
                inp = trg[:, t] if torch.rand(1).item() < self.config.tf else out.argmax(1)
            self.reset_grad()
W|            torch.nn.utils.clip_grad_norm_(self.params, self.config.clip)
            loss.backward()
R|            torch.nn.utils.clip_grad_norm_(self.params, self.config.clip)
            self.opt.step()
""",
    ),
    StepProgram(
        "multitask-dict",
        "train_step",
        """
import torch
from functools import reduce
def train_step(models, batch, optimizers, weights, cfg):
    feats = models["backbone"](batch["image"])
    losses = {}
    for task in cfg.tasks:
        pred = models[task](feats)
        losses[task] = weights[task] * compute_loss(task, pred, batch[task])
    total = reduce(lambda a, b: a + b, losses.values())
    for o in optimizers.values(): o.zero_grad()
W|    for m in models.values(): torch.nn.utils.clip_grad_norm_(m.parameters(), cfg.clip)
    total.backward()
R|    for m in models.values(): torch.nn.utils.clip_grad_norm_(m.parameters(), cfg.clip)
    for o in optimizers.values(): o.step()
    return {k: v.item() for k, v in losses.items()}
""",
    ),
    StepProgram(
        "closure-optimizer-wrapper",
        "Trainer.training_loop",
        """
import torch
class Trainer:
    def __init__(self, model, opt, loader, clip=1.0):
        self.model, self.opt, self.loader, self.clip = model, opt, loader, clip
    def training_loop(self):
        for batch in self.loader:
            self.run_step(lambda: self.compute(batch))
    def compute(self, batch):
        pred = self.model(batch.x, batch.edge_index, batch.batch)
        return ((pred.view(-1) - batch.y) ** 2).mean()
    def run_step(self, closure):
        self.opt.zero_grad()
        loss = closure()
W|        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.opt.step()
""",
    ),
    StepProgram(
        "gnn-full-batch",
        "train",
        """
import torch
import torch.nn.functional as F
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCNConv
class GCN(torch.nn.Module):
    def __init__(self, i, h, o):
        super().__init__()
        self.c1 = GCNConv(i, h); self.c2 = GCNConv(h, o)
    def forward(self, x, ei):
        x = F.dropout(F.relu(self.c1(x, ei)), training=self.training)
        return F.log_softmax(self.c2(x, ei), dim=1)
dataset = Planetoid(root="/tmp/Cora", name="Cora")
data = dataset[0].to("cuda")
model = GCN(dataset.num_features, 16, dataset.num_classes).to("cuda")
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
def train():
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)
    loss = F.nll_loss(out[data.train_mask], data.y[data.train_mask])
W|    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    loss.backward()
R|    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    return float(loss)
for epoch in range(200):
    print(epoch, train())
""",
    ),
    StepProgram(
        "mro-mixins",
        "Trainer.step",
        """
import abc
import torch
from lib.mixins import LoggingMixin, CheckpointMixin
from lib.core import Module
class Base(LoggingMixin, CheckpointMixin, abc.ABC):
    def __init__(self, net, optimizer, **kw):
        super().__init__(**kw)
        self.net = net
        self.optimizer = optimizer
    @abc.abstractmethod
    def loss(self, batch): ...
    @property
    def parameters(self):
        return [p for p in self.net.parameters() if p.requires_grad]
class Trainer(Base):
    def loss(self, batch):
        return self.net(batch).mean()
    def step(self, batch):
        loss = self.loss(batch)
        self.optimizer.zero_grad()
W|        torch.nn.utils.clip_grad_norm_(self.parameters, 3.0)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(self.parameters, 3.0)
        self.optimizer.step()
        self.log("loss", loss)
""",
    ),
    StepProgram(
        "clip-in-optimizer",
        "train",
        """
import torch
class ClippedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, clip=1.0):
        super().__init__(params, dict(lr=lr, clip=clip))
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                g = p.grad.data.clamp_(-group["clip"], group["clip"])
                st = self.state[p]
                if len(st) == 0:
                    st["m"] = torch.zeros_like(g)
                st["m"].mul_(0.9).add_(g, alpha=0.1)
                p.data.add_(st["m"], alpha=-group["lr"])
def train(net, data, cfg):
    opt = ClippedAdam(net.parameters(), lr=cfg.lr)
    for x, y in data:
        opt.zero_grad()
        loss = torch.nn.functional.l1_loss(net(x), y)
W|        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        loss.backward()
R|        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
""",
    ),
    StepProgram(
        "distill",
        "Distiller.train_epoch",
        """
import torch, torch.nn as nn
class Distiller:
    def __init__(self, teacher, student, loader, cfg):
        self.teacher, self.student = teacher.eval(), student
        for p in self.teacher.parameters(): p.requires_grad = False
        self.opt = torch.optim.Adam(self.student.parameters(), lr=cfg.lr)
        self.loader, self.T, self.cfg = loader, cfg.T, cfg
        self.kl = nn.KLDivLoss(reduction="batchmean")
    def train_epoch(self):
        for batch in self.loader:
            x, y = map(lambda t: t.to(self.cfg.device), batch)
            with torch.no_grad():
                t_logits = self.teacher(x)
            s_logits = self.student(x)
            loss = self.kl((s_logits / self.T).log_softmax(-1), (t_logits / self.T).softmax(-1)) * self.T ** 2 + nn.functional.cross_entropy(s_logits, y)
            self.opt.zero_grad()
W|            nn.utils.clip_grad_norm_(self.student.parameters(), self.cfg.clip)
            loss.backward()
R|            nn.utils.clip_grad_norm_(self.student.parameters(), self.cfg.clip)
            self.opt.step()
""",
    ),
    StepProgram(
        "nested-fn-env",
        "main",
        """
import os
import torch
def main():
    args = get_args()
    net = get_net(args)
    params = net.parameters() if args.tune_all else net.head.parameters()
    params = list(params)
    opt = torch.optim.SGD(params, lr=args.lr)
    state = {"it": 0}
    def step(batch, train=True):
        with torch.set_grad_enabled(train):
            out = net(batch["img"])
            loss = torch.nn.functional.cross_entropy(out, batch["lab"])
        if train:
            opt.zero_grad()
W|            torch.nn.utils.clip_grad_norm_(params, args.clip)
            loss.backward()
R|            torch.nn.utils.clip_grad_norm_(params, args.clip)
            opt.step()
            state["it"] += 1
        return loss.item(), (out.argmax(1) == batch["lab"]).float().mean().item()
    for ep in range(args.epochs):
        for phase in ["train", "val"]:
            net.train(phase == "train")
            tot = [0.0, 0.0]
            for b in loaders[phase]:
                l, a = step(b, phase == "train")
                tot[0] += l; tot[1] += a
            print(phase, tot)
main()
""",
    ),
    StepProgram(
        "torchscript-types",
        "Worker.optimize",
        """
from __future__ import annotations
import typing as t
import torch
import attr
@attr.s(auto_attribs=True)
class Opts:
    clip: float = 0.5
    lr: float = 1e-3
class Worker(t.Generic[t.TypeVar("T")]):
    opts: Opts
    nets: t.Dict[str, torch.nn.Module]
    def __init__(self, opts: Opts, **nets: torch.nn.Module) -> None:
        self.opts = opts
        self.nets = nets
        self.optimizer = torch.optim.Adam([p for n in nets.values() for p in n.parameters()], lr=opts.lr)
    def optimize(self, batch: t.Mapping[str, torch.Tensor]) -> t.Dict[str, float]:
        out = self.nets["policy"](batch["obs"])
        loss: torch.Tensor = self._loss(out, batch)
        self.optimizer.zero_grad(set_to_none=True)
W|        norm: torch.Tensor = torch.nn.utils.clip_grad_norm_(self.nets["policy"].parameters(), self.opts.clip)
        loss.backward()
R|        norm: torch.Tensor = torch.nn.utils.clip_grad_norm_(self.nets["policy"].parameters(), self.opts.clip)
        self.optimizer.step()
        return {"loss": loss.item()}
    def _loss(self, out, batch):
        dist = torch.distributions.Normal(out[..., 0], out[..., 1].exp())
        return -(dist.log_prob(batch["act"]) * batch["adv"]).mean()
""",
    ),
    StepProgram(
        "kfold-sklearn",
        "run_fold",
        """
import numpy as np, pandas as pd, torch
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
def run_fold(df, fold, cfg):
    kf = KFold(5, shuffle=True, random_state=cfg.seed)
    tr, va = list(kf.split(df))[fold]
    sc = StandardScaler()
    X = sc.fit_transform(df.iloc[tr][cfg.cols].values)
    y = df.iloc[tr][cfg.target].values.astype(np.float32)
    ds = torch.utils.data.TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(y))
    dl = torch.utils.data.DataLoader(ds, batch_size=cfg.bs, shuffle=True)
    model = torch.nn.Sequential(torch.nn.Linear(X.shape[1], 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    opt = torch.optim.AdamW(model.parameters(), lr=cfg.lr)
    crit = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([cfg.pw]))
    sch = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=3)
    for ep in range(cfg.epochs):
        model.train()
        for xb, yb in dl:
            opt.zero_grad()
            loss = crit(model(xb).squeeze(1), yb)
W|            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
            loss.backward()
R|            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
            opt.step()
        sch.step(loss)
""",
        kind="replica",
    ),
    StepProgram(
        "jit-lists",
        "Learner.update",
        """
import torch
class Learner:
    def __init__(self, agents, cfg):
        self.agents = [a.cuda() for a in agents]
        self.critics = torch.nn.ModuleList([make_critic(cfg) for _ in range(cfg.n)])
        self.a_opts = [torch.optim.Adam(a.parameters(), lr=cfg.lr) for a in self.agents]
        self.c_opt = torch.optim.Adam(self.critics.parameters(), lr=cfg.lr)
        self.cfg = cfg
    def update(self, buffer):
        for epoch in range(self.cfg.epochs):
            batch = buffer.sample()
            c_loss = sum(((c(batch.s) - batch.ret) ** 2).mean() for c in self.critics)
            self.c_opt.zero_grad()
W|            torch.nn.utils.clip_grad_norm_(self.critics.parameters(), self.cfg.clip)
            c_loss.backward()
R|            torch.nn.utils.clip_grad_norm_(self.critics.parameters(), self.cfg.clip)
            self.c_opt.step()
            for i, (agent, opt) in enumerate(zip(self.agents, self.a_opts)):
                loss = -(agent(batch.s).log_prob(batch.a[i]) * batch.adv).mean()
                opt.zero_grad(); loss.backward(); opt.step()
""",
    ),
]
