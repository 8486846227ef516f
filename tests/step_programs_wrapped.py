"""Training programs for the replay tests: frameworks, wrapped optimizers and collections of optimizers."""

from __future__ import annotations

from tests.step_programs import StepProgram

WRAPPED: list[StepProgram] = [
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
    model_engine, optimizer, trainloader, __ = deepspeed.initialize(
        args=args, model=model, model_parameters=params, training_data=trainset)
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
        norms = [p.grad.norm(p=2) for group in self.param_groups for p in group["params"] if p.grad is not None]
        return torch.norm(torch.stack(norms), p=2)
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
R|        self.clip_gradients(opt_g, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        opt_g.step()
W|        self.clip_gradients(opt_g, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
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
]
