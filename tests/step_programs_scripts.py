"""Training programs for the replay tests: solvers, runners and scripts with much that a slice does not hold."""

from __future__ import annotations

from tests.step_programs import StepProgram

SCRIPTS: list[StepProgram] = [
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
        ones = torch.ones_like(u_pred)
        u_x = torch.autograd.grad(u_pred, self.x, grad_outputs=ones, retain_graph=True, create_graph=True)[0]
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
            soft = self.kl((s_logits / self.T).log_softmax(-1), (t_logits / self.T).softmax(-1))
            loss = soft * self.T ** 2 + nn.functional.cross_entropy(s_logits, y)
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
    model = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
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
