"""Wrong training code: GL101 has to speak on the lines marked ``# GL101``, and on no other."""

from __future__ import annotations

WRONG: dict[str, str] = {}

WRONG["tutorial order"] = """
import torch
import torch.nn as nn
class SimpleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 1))
    def forward(self, x):
        return self.body(x)
model = SimpleNet()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)
outputs = model(inputs)
loss = nn.MSELoss()(outputs, targets)
torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1)  # GL101
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.zero_grad()
loss.backward()
optimizer.step()
"""

WRONG["loop in a function"] = """
import torch
def train(model, optimizer, criterion, loader):
    for data, target in loader:
        loss = criterion(model(data), target)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # GL101
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""

WRONG["cleared first"] = """
from torch.nn.utils import clip_grad_norm_
for epoch in range(epochs):
    for i, (src, tgt) in enumerate(loader):
        optimizer.zero_grad()
        output = model(src, tgt)
        loss = loss_fn(output, tgt)
        clip_grad_norm_(model.parameters(), max_norm=1.0)  # GL101
        loss.backward()
        optimizer.step()
"""

WRONG["alias, value clip"] = """
from torch.nn.utils import clip_grad_value_ as clip
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    clip(model.parameters(), 0.1)  # GL101
    loss.backward()
    optimizer.step()
"""

WRONG["old name through the module"] = """
import torch.nn as nn
for x, y in loader:
    nn.utils.clip_grad_norm(model.parameters(), 5)  # GL101
    model.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()
"""

WRONG["clip_grad submodule"] = """
from torch import nn
def epoch(net, opt, data):
    for x in data:
        opt.zero_grad()
        nn.utils.clip_grad.clip_grad_norm_(net.parameters(), 2.0)  # GL101
        net(x).sum().backward()
        opt.step()
"""

WRONG["guarded by an option"] = """
import torch
def train(args, model, optimizer, loader):
    for batch in loader:
        loss = model(batch)
        if args.clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)  # GL101
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""

WRONG["one-line guard with tabs"] = """
import torch
for batch in loader:
\tif args.clip: torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)  # GL101
\tmodel.train(); optimizer.zero_grad()
\tmodel(batch).backward()
\toptimizer.step()
"""

WRONG["method of a trainer"] = """
import torch
class Trainer:
    def train_epoch(self, loader):
        for batch in loader:
            loss = self.compute_loss(batch)
            self.optimizer.zero_grad()
            grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)  # GL101
            loss.backward()
            self.optimizer.step()
            self.log("grad_norm", grad_norm)
"""

WRONG["clip in a helper method"] = """
import torch
class Trainer:
    def clip(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # GL101
    def train(self, loader):
        for batch in loader:
            self.optimizer.zero_grad()
            self.clip()
            self.model(batch).backward()
            self.optimizer.step()
"""

WRONG["backward and step in a helper"] = """
import torch
def optimise(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
def train(model, optimizer, loader):
    for batch in loader:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
        optimise(model(batch), optimizer)
"""

WRONG["accelerate"] = """
from accelerate import Accelerator
def main(args):
    accelerator = Accelerator()
    model, optimizer, loader = accelerator.prepare(make_model(), make_optimizer(), make_loader())
    for batch in loader:
        loss = model(**batch).loss
        if args.max_grad_norm:
            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)  # GL101
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
"""

WRONG["fabric"] = """
def train(fabric, model, optimizer, loader):
    for batch in loader:
        loss = model(batch)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)  # GL101
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
"""

WRONG["lightning manual optimisation"] = """
import lightning as L
class Lit(L.LightningModule):
    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        opt.zero_grad()
        loss = self.compute_loss(batch)
        self.clip_gradients(opt, gradient_clip_val=0.5, gradient_clip_algorithm="norm")  # GL101
        self.manual_backward(loss)
        opt.step()
"""

WRONG["loss scaling"] = """
import torch
scaler = torch.cuda.amp.GradScaler()
for x, y in loader:
    optimizer.zero_grad()
    with torch.cuda.amp.autocast():
        loss = criterion(model(x), y)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
"""

WRONG["unscale at the right place, clip at the wrong one"] = """
import torch
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
"""

WRONG["mixed precision branches"] = """
import torch
for x, y in loader:
    loss = criterion(model(x), y)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
    optimizer.zero_grad()
    if use_amp:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        optimizer.step()
"""

WRONG["one branch only"] = """
import torch
for x, y in loader:
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    if use_amp:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
"""

WRONG["accumulation, clip under the same guard"] = """
import torch
for i, batch in enumerate(loader):
    loss = model(batch) / accum
    if (i + 1) % accum == 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
    loss.backward()
    if (i + 1) % accum == 0:
        optimizer.step()
        optimizer.zero_grad()
"""

WRONG["clip each turn, step under a guard"] = """
import torch
for i, batch in enumerate(loader):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
    model(batch).backward()
    if (i + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
"""

WRONG["micro-batches in an inner loop"] = """
import torch
for it in range(max_iters):
    optimizer.zero_grad(set_to_none=True)
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)  # GL101
    for micro in range(accum):
        X, Y = get_batch("train")
        logits, loss = model(X, Y)
        loss.backward()
    optimizer.step()
"""

WRONG["closure"] = """
import torch
optimizer = torch.optim.LBFGS(model.parameters())
for x, y in loader:
    def closure():
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
        loss.backward()
        return loss
    optimizer.step(closure)
"""

WRONG["no loop, method of an agent"] = """
import torch.nn as nn
class Agent:
    def learn(self):
        states, actions, rewards = self.memory.sample()
        loss = self.criterion(self.policy_net(states), rewards)
        nn.utils.clip_grad_norm_(self.policy_net.parameters(), 10)  # GL101
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
"""

WRONG["two optimizers, both wrong"] = """
import torch
class Td3:
    def __init__(self):
        self.actor_opt = torch.optim.Adam(self.actor.parameters())
        self.critic_opt = torch.optim.Adam(self.critic.parameters())
    def update(self, batch):
        critic_loss = self.critic_loss(batch)
        torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)  # GL101
        self.critic_opt.zero_grad()
        critic_loss.backward()
        self.critic_opt.step()
        actor_loss = -self.critic(batch, self.actor(batch)).mean()
        torch.nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0)  # GL101
        self.actor_opt.zero_grad()
        actor_loss.backward()
        self.actor_opt.step()
"""

WRONG["one backward, two optimizers"] = """
import torch
for src, tgt in loader:
    loss = criterion(decoder(encoder(src)), tgt)
    torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)  # GL101
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)  # GL101
    encoder_optimizer.zero_grad()
    decoder_optimizer.zero_grad()
    loss.backward()
    encoder_optimizer.step()
    decoder_optimizer.step()
"""

WRONG["early continue and try"] = """
import torch
for x, y in loader:
    if x.numel() == 0:
        continue
    try:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
        loss.backward()
        optimizer.step()
    except RuntimeError:
        optimizer.zero_grad()
        continue
"""

WRONG["gradients set to None by hand"] = """
import torch
for batch in loader:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
    for p in model.parameters():
        p.grad = None
    model(batch).backward()
    optimizer.step()
"""

WRONG["clip of a sharded model"] = """
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
model = FSDP(make())
optimizer = torch.optim.AdamW(model.parameters())
for batch in loader:
    model.clip_grad_norm_(1.0)  # GL101
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()
"""

WRONG["function with the step, called from main"] = """
import torch
def train_step(model, optimizer, batch):
    out = model(batch["x"])
    loss = torch.nn.functional.cross_entropy(out, batch["y"])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
def main():
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    for batch in loader:
        train_step(model, optimizer, batch)
        train_step(model, optimizer, batch)
if __name__ == "__main__":
    main()
"""

WRONG["parameters by hand"] = """
import torch
trainable = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=1e-4)
pbar = tqdm(loader)
for batch in pbar:
    total = torch.nn.utils.clip_grad_norm_(trainable, 1.0)  # GL101
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    pbar.set_postfix(loss=loss.item(), norm=total)
"""

WRONG["nested function"] = """
import torch
def make(model, optimizer):
    def step(batch):
        loss = model(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # GL101
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss
    return step
"""

WRONG["meters and a warm-up of the loss"] = """
import time
import torch
import torch.nn as nn
def train_model(loader, model, optimizer, scheduler, epoch, args):
    batch_time, losses = AverageMeter(), AverageMeter()
    t_start = time.time()
    for batch_ind, batch_v in enumerate(loader):
        ens = run_ensemble(model, batch_v, args)
        ignore_first = args.ignore_first if args.warm_up else 0
        loss = torch.mean((ens[ignore_first:] - batch_v[ignore_first:]) ** 2)
        losses.update(loss.item(), batch_v.shape[0])
        # optimisation
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # GL101
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        batch_time.update(time.time() - t_start)
        if (batch_ind + 1) % args.print_batch == 0:
            print(f"{epoch} {batch_time.avg:.3f} {losses.avg:.3f} {optimizer.param_groups[0]['lr']:.2e}")
    scheduler.step()
"""

WRONG["only for one kind of model"] = """
import torch
for epoch in range(num_epochs):
    for i, (images, labels) in enumerate(train_loader):
        assert images.shape[1] == channels, f"expected {channels} channels"
        outputs = model(images)
        loss = criterion(outputs, labels[:, :2])
        if model_name == "ViT":
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # GL101
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"Epoch [{epoch + 1}/{num_epochs}], Loss: {loss.item():.4f}")
"""

WRONG["helpers with plain names before it"] = """
import torch
from tools import gather_walks
def train(predictor, optimizer, edges, graph):
    for perm in DataLoader(range(edges.size(1)), 64):
        optimizer.zero_grad()
        x, ind = gather_walks(edges[:, perm], graph)
        pred = predictor.forward(x, ind)
        loss = torch.nn.BCEWithLogitsLoss()(pred, label[perm])
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), max_norm=1.0)  # GL101
        loss.backward()
        optimizer.step()
"""

WRONG["timers around the parts"] = """
import time
import torch
for i in range(max_epochs):
    for x, y in train_loader:
        tick = time.time()
        logits, loss = model(x, y)
        forward_time += time.time() - tick
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # GL101
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        accuracy.append((torch.argmax(logits, dim=-1) == y).float().mean().item())
        optimizer.step()
    lr_sched.step()
"""

WRONG["sparse autoencoder with a try around the data"] = """
import torch as t
from torch import nn, optim
def train_sae(model, sae, steps, log_freq, batch_size):
    optimizer = optim.Adam(sae.parameters(), lr=1e-3)
    for step in range(steps):
        try:
            batch = generate_activations(model, batch_size=batch_size).to(device)
        except Exception as error:
            print(error)
            continue
        optimizer.zero_grad()
        loss, l_reconstruction, l_sparsity, acts, h = sae(batch)
        nn.utils.clip_grad_norm_(sae.parameters(), max_norm=1.0)  # GL101
        loss.backward()
        optimizer.step()
        with t.no_grad():
            explained = 1 - t.sum((batch - h) ** 2) / t.sum(batch ** 2)
        if step % log_freq == 0:
            print(loss.item(), explained.item())
"""

WRONG["Adam first, then LBFGS with a closure"] = """
import torch.nn as nn
from torch import optim
def fit(model, x):
    optimizer = optim.Adam(model.parameters())
    for epoch in range(100):
        optimizer.zero_grad()
        loss = residual(model, x).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
    def closure():
        optimizer.zero_grad()
        loss = residual(model, x).pow(2).mean()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # GL101
        loss.backward()
        return loss
    optimizer = optim.LBFGS(model.parameters(), max_iter=500)
    optimizer.step(closure)
"""
