"""Right training code that a hasty reader takes for wrong: GL101 has to be silent on every program."""

from __future__ import annotations

RIGHT: dict[str, str] = {}

RIGHT["plain loop"] = """
import torch
def train(model, optimizer, criterion, loader, device):
    model.train()
    for data, target in loader:
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        loss = criterion(model(data), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
"""

RIGHT["clear at the end"] = """
import torch
for step in range(100):
    loss = model(batch).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
"""

RIGHT["accelerate"] = """
def main(args):
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
"""

RIGHT["fabric"] = """
def train(fabric, model, optimizer, loader):
    for batch in loader:
        optimizer.zero_grad()
        loss = model(batch)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
"""

RIGHT["lightning manual optimisation"] = """
import lightning as L
class Lit(L.LightningModule):
    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        opt.zero_grad()
        loss = self.compute_loss(batch)
        self.manual_backward(loss)
        self.clip_gradients(opt, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        opt.step()
"""

RIGHT["lightning automatic optimisation"] = """
import pytorch_lightning as pl
class Lit(pl.LightningModule):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        self.clip_gradients(optimizer, gradient_clip_val=gradient_clip_val)
    def training_step(self, batch, batch_idx):
        return self.model(batch).mean()
"""

RIGHT["apex optimizer backward"] = """
import torch
def step(self, loss):
    self.optimizer.zero_grad()
    self.optimizer.backward(loss)
    self.optimizer.clip_master_grads(1.0)
    self.optimizer.step()
"""

RIGHT["apex scale_loss and master_params"] = """
import torch
from apex import amp
for batch in loader:
    loss = model(batch)
    if args.fp16:
        with amp.scale_loss(loss, optimizer) as scaled_loss:
            scaled_loss.backward()
        torch.nn.utils.clip_grad_norm_(amp.master_params(optimizer), args.max_grad_norm)
    else:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
    optimizer.step()
    model.zero_grad()
"""

RIGHT["deepspeed engine"] = """
import torch
for batch in loader:
    loss = engine(batch)
    engine.backward(loss)
    torch.nn.utils.clip_grad_norm_(engine.module.parameters(), 1.0)
    engine.step()
"""

RIGHT["scaled loss in a variable"] = """
import torch
for batch in loader:
    loss = scaler.scale(model(batch))
    loss.backward()
    scaler.unscale_(opt)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(opt)
    scaler.update()
    opt.zero_grad()
"""

RIGHT["sum of losses"] = """
import torch
for batch in loader:
    losses = model(batch)
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    opt.zero_grad()
"""

RIGHT["criterion backward in one line"] = """
import torch
for x, y in loader:
    opt.zero_grad()
    criterion(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
"""

RIGHT["torch.autograd.backward"] = """
import torch
for x, y in loader:
    opt.zero_grad()
    torch.autograd.backward([f(x), g(y)])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
"""

RIGHT["distributed autograd"] = """
import torch.distributed.autograd as dist_autograd
import torch
for data in loader:
    with dist_autograd.context() as context_id:
        loss = model(data).sum()
        dist_autograd.backward(context_id, [loss])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step(context_id)
"""

RIGHT["helper returns the loss after backward"] = """
import torch
class Compute:
    def backward(self, losses):
        total = sum(losses)
        total.backward()
        return total
compute = Compute()
for batch in loader:
    loss = compute.backward(losses=model(batch))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    opt.zero_grad()
"""

RIGHT["unknown helper with a training name"] = """
import torch
from engine import run_backward_pass
for batch in loader:
    loss = run_backward_pass(model, batch)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    opt.zero_grad()
"""

RIGHT["a hook fills the gradients, then a second loss"] = """
import torch
for batch in loader:
    runner.call_hook("after_iter")
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.zero_grad()
    aux(batch).backward()
    opt.step()
"""

RIGHT["optimizer wrapper called backward clips"] = """
import torch
class Wrapper:
    def backward(self, loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.max_norm)
    def step(self):
        self.optimizer.step()
"""

RIGHT["branches of mixed precision"] = """
import torch
for x, y in loader:
    optimizer.zero_grad()
    if use_amp:
        with torch.cuda.amp.autocast():
            loss = criterion(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    else:
        loss = criterion(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
"""

RIGHT["two optimizers in turn"] = """
import torch
for batch in loader:
    loss_d = d_loss(batch)
    opt_d.zero_grad()
    loss_d.backward()
    torch.nn.utils.clip_grad_norm_(netD.parameters(), 1.0)
    opt_d.step()
    loss_g = g_loss(batch)
    opt_g.zero_grad()
    loss_g.backward()
    torch.nn.utils.clip_grad_norm_(netG.parameters(), 1.0)
    opt_g.step()
"""

RIGHT["one backward, two optimizers"] = """
import torch
actor_opt = torch.optim.Adam(actor.parameters())
critic_opt = torch.optim.Adam(critic.parameters())
for batch in loader:
    actor_opt.zero_grad(); critic_opt.zero_grad()
    loss(batch).backward()
    actor_opt.step()
    torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
    critic_opt.step()
"""

RIGHT["step and backward in helper methods, out of order"] = """
import torch
class Trainer:
    def take_optimizer_step(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
    def take_training_step(self, batch):
        loss = self.model(batch)
        loss.backward()
        return loss.item()
    def train_epoch(self, loader):
        for batch in loader:
            loss = self.take_training_step(batch)
            self.take_optimizer_step()
"""

RIGHT["clip in train, backward in a method of a base class elsewhere"] = """
import torch
from base import BaseTrainer
class Trainer(BaseTrainer):
    def train(self, loader):
        for batch in loader:
            self.zero_grad_all()
            self.forward_backward(batch)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
"""

RIGHT["pix2pix style methods"] = """
import torch
class Pix2Pix:
    def backward_G(self):
        self.loss_G = self.criterion(self.fake, self.real)
        self.loss_G.backward()
    def optimize_parameters(self):
        self.forward()
        self.optimizer_G.zero_grad()
        self.backward_G()
        torch.nn.utils.clip_grad_norm_(self.netG.parameters(), 1.0)
        self.optimizer_G.step()
"""

RIGHT["callable loss scaler"] = """
import torch
def train_one_epoch(model, loader, optimizer, loss_scaler, max_norm):
    for samples, targets in loader:
        loss = criterion(model(samples), targets)
        optimizer.zero_grad()
        loss_scaler(loss, optimizer, clip_grad=max_norm, parameters=model.parameters())
"""

RIGHT["native scaler class"] = """
import torch
class NativeScaler:
    def __init__(self):
        self._scaler = torch.cuda.amp.GradScaler()
    def __call__(self, loss, optimizer, clip_grad=None, parameters=None, need_update=True):
        self._scaler.scale(loss).backward()
        if need_update:
            if clip_grad is not None:
                self._scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
            self._scaler.step(optimizer)
            self._scaler.update()
"""

RIGHT["pipelined: the top of the loop finishes the last turn"] = """
import torch
for i, batch in enumerate(loader):
    if i > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    loss = model(batch)
    loss.backward()
"""

RIGHT["pipelined: accumulation flushed at the top"] = """
import torch
for i, batch in enumerate(loader):
    if i % accum == 0 and i:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    (model(batch).mean() / accum).backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
"""

RIGHT["accumulation under a counter"] = """
import torch
for i, batch in enumerate(loader):
    loss = model(batch) / accum
    loss.backward()
    if (i + 1) % accum != 0:
        continue
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
"""

RIGHT["micro-batches in an inner loop"] = """
import torch
for it in range(max_iters):
    for micro in range(accum):
        model.require_backward_grad_sync = micro == accum - 1
        X, Y = get_batch("train")
        _, loss = model(X, Y)
        scaler.scale(loss / accum).backward()
    if grad_clip != 0.0:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
"""

RIGHT["no_sync around backward"] = """
import contextlib, torch
for i, batch in enumerate(loader):
    sync = (i + 1) % accum == 0
    with contextlib.nullcontext() if sync else model.no_sync():
        model(batch).mean().backward()
    if sync:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
"""

RIGHT["closure"] = """
import torch
optimizer = torch.optim.LBFGS(model.parameters())
for x, y in loader:
    def closure():
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss
    optimizer.step(closure)
"""

RIGHT["sharpness-aware, two passes"] = """
import torch
for x, y in loader:
    criterion(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.first_step(zero_grad=True)
    criterion(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.second_step(zero_grad=True)
"""

RIGHT["gradient surgery: the first gradient is kept"] = """
import torch
for x, y in loader:
    optimizer.zero_grad()
    first(model, x).backward(retain_graph=True)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    kept = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    second(model, y).backward()
    for p, g in zip(model.parameters(), kept):
        p.grad.add_(g)
    optimizer.step()
"""

RIGHT["differentially private sum"] = """
import torch
for batch in loader:
    for sample in batch:
        model(sample).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for p, total in zip(model.parameters(), sums):
            total += p.grad
            p.grad = None
    for p, total in zip(model.parameters(), sums):
        p.grad = total + noise(p)
    optimizer.step()
"""

RIGHT["infinite norm measures"] = """
import torch
for batch in loader:
    last = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    optimizer.zero_grad()
    model(batch).mean().backward()
    optimizer.step()
"""

RIGHT["infinite norm by name"] = """
import math, torch
NO_LIMIT = math.inf
for batch in loader:
    last = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=NO_LIMIT)
    optimizer.zero_grad()
    model(batch).mean().backward()
    optimizer.step()
"""

RIGHT["no gradient clips at all"] = """
import clip, numpy as np, torch
image_features, _ = clip.load("ViT-B/32")
for batch in loader:
    batch = np.clip(batch, 0, 1)
    x = torch.as_tensor(batch).clip(0, 1)
    emb = clip.tokenize(texts)
    ratio = torch.clamp(ratio, 1 - clip_eps, 1 + clip_eps)
    optimizer.zero_grad()
    model(x, emb).mean().backward()
    optimizer.step()
    for p in critic.parameters():
        p.data.clamp_(-0.01, 0.01)
"""

RIGHT["in comments and strings"] = '''
import torch
def train(model, optimizer, loader):
    """
    for batch in loader:
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    """
    for batch in loader:
        # torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
'''

RIGHT["dead code"] = """
import torch
for batch in loader:
    if False:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()
def never():
    return
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    loss.backward()
    optimizer.step()
"""

RIGHT["parameters in a list"] = """
import itertools, torch
params = list(itertools.chain(encoder.parameters(), decoder.parameters()))
optimizer = torch.optim.Adam(params)
for src, tgt in loader:
    optimizer.zero_grad()
    loss = criterion(decoder(encoder(src)), tgt)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 5.0)
    optimizer.step()
"""

RIGHT["old name, tabs, one-line guard"] = """
import torch
for i, batch in enumerate(loader):
\toptimizer.zero_grad(); loss = model(batch)
\tloss.backward()
\tif args.clip: torch.nn.utils.clip_grad_norm(model.parameters(), args.clip)
\toptimizer.step()
"""

RIGHT["clip after the step is another rule"] = """
import torch
for batch in loader:
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
"""

RIGHT["clip after the step with clearing later"] = """
import torch
for batch in loader:
    model(batch).backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.zero_grad()
"""

RIGHT["a second clip does the work"] = """
import torch
for batch in loader:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.zero_grad()
    model(batch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
"""

RIGHT["distributed gradients of a parameter server"] = """
import torch
class Server:
    def push(self, grads):
        for p, g in zip(self.model.parameters(), grads):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
"""

RIGHT["worker computes, learner steps"] = """
import torch
class Agent:
    def compute_gradients(self, batch):
        self.optimizer.zero_grad()
        self.loss(batch).backward()
    def apply(self):
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 40.0)
        self.optimizer.step()
    def learn(self, replay):
        for batch in replay:
            self.compute_gradients(batch)
            self.apply()
"""

RIGHT["try around out of memory"] = """
import torch
for batch in loader:
    optimizer.zero_grad()
    try:
        loss = model(batch)
        loss.backward()
    except RuntimeError as error:
        if "out of memory" in str(error):
            torch.cuda.empty_cache()
            continue
        raise
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
"""

RIGHT["warm-up step of a scheduler, environment step"] = """
import torch
while not done:
    obs, reward, done, info = env.step(policy.act(obs))
    scheduler.step()
    optimizer.zero_grad()
    loss(obs, reward).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    optimizer.step()
"""

RIGHT["fairseq style"] = """
import torch
class Task:
    def train_step(self, sample, model, criterion, optimizer, ignore_grad=False):
        loss, size, logs = criterion(model, sample)
        optimizer.backward(loss)
        return loss, size, logs
class Trainer:
    def train_step(self, samples):
        self.zero_grad()
        for sample in samples:
            loss, size, logs = self.task.train_step(sample, self.model, self.criterion, self.optimizer)
        grad_norm = self.clip_grad_norm(self.cfg.clip_norm)
        self.optimizer.step()
    def clip_grad_norm(self, clip_norm):
        return self.optimizer.clip_grad_norm(clip_norm)
    def zero_grad(self):
        self.optimizer.zero_grad()
"""

RIGHT["clip of the critic by its own backward in a helper"] = """
import torch
def update(optimizer, loss, params, max_norm):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, max_norm)
    optimizer.step()
class SAC:
    def train(self, buffer):
        for _ in range(self.updates):
            update(self.critic_opt, self.critic_loss(buffer), self.critic.parameters(), 1.0)
            update(self.actor_opt, self.actor_loss(buffer), self.actor.parameters(), 1.0)
"""

RIGHT["the name is shadowed"] = """
from torch.nn.utils import clip_grad_norm_ as clip
def train(clip, model, optimizer, loader):
    for batch in loader:
        clip(model, 1.0)
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
"""

RIGHT["clipped in a subclass that overrides backward"] = """
import torch
class Base:
    def backward(self, loss):
        raise NotImplementedError
    def fit(self, loader):
        for batch in loader:
            self.optimizer.zero_grad()
            self.backward(self.model(batch))
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
class Plain(Base):
    def backward(self, loss):
        loss.backward()
"""

RIGHT["hogwild workers step a shared optimizer"] = """
import torch
def worker(shared, local, optimizer):
    while True:
        loss = rollout(local)
        local.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(local.parameters(), 40)
        ensure_shared_grads(local, shared)
        optimizer.step()
"""
