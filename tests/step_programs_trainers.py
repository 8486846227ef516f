"""Training programs for the replay tests: as trainers and agents of well-known projects are written."""

from __future__ import annotations

from tests.step_programs import StepProgram

TRAINERS: list[StepProgram] = [
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
    grads = autograd.grad(outputs=d, inputs=inter, grad_outputs=torch.ones(d.size(), device=device),
                          create_graph=True, retain_graph=True)[0]
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
            q_next = torch.min(self.q1_t(o2, a2), self.q2_t(o2, a2))
            target = r + (1 - d) * self.args.gamma * (q_next - self.log_alpha.exp() * logp2)
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
    losses = F.cross_entropy(flat, tokens[mask], reduction="none")
    loss = (losses * weights.repeat_interleave(torch.tensor(lengths))).sum()
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
def train_one_epoch(model: torch.nn.Module, criterion: torch.nn.Module, data_loader: Iterable,
                    optimizer: torch.optim.Optimizer, device: torch.device, epoch: int, max_norm: float = 0):
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
            clipped = torch.clamp(ratios, 1 - self.eps, 1 + self.eps) * adv
            loss = -torch.min(ratios * adv, clipped) + 0.5 * nn.MSELoss()(v, rewards) - 0.01 * ent
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
from transformers import (WEIGHTS_NAME, AdamW, BertConfig, BertForSequenceClassification, BertTokenizer,
                          get_linear_schedule_with_warmup)
def main(args):
    tokenizer = BertTokenizer.from_pretrained(args.model)
    model = BertForSequenceClassification.from_pretrained(args.model)
    model.to(args.device)
    no_decay = ["bias", "LayerNorm.weight"]
    grouped = [
        {"params": [p for n, p in model.named_parameters() if not any(nd in n for nd in no_decay)],
         "weight_decay": args.wd},
        {"params": [p for n, p in model.named_parameters() if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
    ]
    optimizer = AdamW(grouped, lr=args.learning_rate, eps=args.adam_epsilon)
    scheduler = get_linear_schedule_with_warmup(optimizer, args.warmup, num_training_steps=args.total)
    data = load(args, tokenizer)
    train_dataloader = DataLoader(data, sampler=RandomSampler(data), batch_size=args.bs)
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
            self.optimizer_G = torch.optim.Adam(
                itertools.chain(self.netG_A.parameters(), self.netG_B.parameters()), lr=opt.lr)
            self.optimizer_D = torch.optim.Adam(
                itertools.chain(self.netD_A.parameters(), self.netD_B.parameters()), lr=opt.lr)
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
]
