"""The names by which training code calls things, where nothing else tells what they are."""

from __future__ import annotations

import ast
import builtins
import re
import sys

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


TORCH_CLIPS = word_set("clip_grad_norm_ clip_grad_norm clip_grad_value_ clip_grad_value dispatch_clip_grad")
"""Functions of PyTorch, and timm's own, which calls them."""
METHOD_CLIPS = TORCH_CLIPS | word_set("clip_gradients clip_grads clip_master_grads")
CLEARS = word_set("zero_grad reset_grad zero_grads reset_grads clear_grad clear_gradients")
SCALES = word_set("mul_ multiply_ div_ divide_ clamp_ clamp_min_ clamp_max_ clip_ nan_to_num_")
"""What is done to a gradient in place that makes none where there was none."""
FUNCTION_CLEARS = CLEARS | word_set("zero_gradients clear_grads")
EVENTS = CLEARS | METHOD_CLIPS | word_set("backward manual_backward step unscale_")
BACKWARDS = word_set("_backward do_backward run_backward backward_loss loss_backward backward_pass _manual_backward")
"""Methods that cannot be read, and are given a loss: they run its backward."""
STOPS = word_set("sys.exit os._exit exit quit")

OPTIMIZER_CLASSES = word_set(
    """Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD LBFGS LAMB Lamb LARS Lion Muon NAdam RAdam RMSprop Rprop SGD
    SparseAdam"""
)
OPTIMIZERS = word_set("opt opts optim optims optimizer optimizers optimiser optimisers adam adamw sgd lbfgs rmsprop")
SCHEDULERS = word_set("sch sched scheds scheduler schedulers schedule lr warmup anneal annealing plateau")
OTHER_STEPS = word_set(
    """env envs environment metric metrics meter ema profiler prof pbar progress bar simulator sim logger timer sampler
    swa board writer debugger stepper world game wandb tracker updater annealer early stopper stopping"""
)
"""Things with a ``step`` that trains nothing."""
MODELS = word_set(
    """model models net nets network networks module encoder decoder generator discriminator critic actor policy
    backbone classifier unet vae gan gpt bert transformer student teacher netd netg rnn lstm cnn mlp"""
)
MODEL_METHODS = word_set("parameters named_parameters eval modules named_modules requires_grad_")
PARAMETER_WORDS = word_set("param params parameter parameters weights groups group")
"""In the name of what lists parameters."""
PARAMETER_METHODS = word_set("parameters named_parameters trainable_parameters get_parameters")

STRONG = word_set(
    """backward backwards backprop backpropagate bwd minimize train training trainer learn optimize optimise
    optimization step steps update updates fit accumulate apply hook hooks callback callbacks closure grad grads
    gradient gradients reinforce finetune pretrain iteration iterate clip event trigger dispatch"""
)
"""In the name of a call that cannot be read: it may touch gradients."""
OF_ANYTHING = word_set("update updates apply accumulate fit clip event")
"""Among them those that every kind of object has."""
COMPUTING = word_set(
    """loss losses criterion forward preprocess compute sample augment augmentation augmentations augmenter aug mixup
    collate encode decode predict metric
    metrics accuracy evaluate validate valid validation test eval cuda to move mask pad embed tokenize transform
    normalize denormalize mean sum stack cat optimizers schedulers count size len next fetch read error errors data td
    returns advantage advantages iters parameters params dataloader loader dataset preset presets"""
)
"""In the name of a call that cannot be read: it computes something, unless it is given an optimizer."""
BOOKKEEPING = word_set(
    """prepare set get log logger print save load checkpoint device adjust lr rate schedule scheduler warmup decay init
    initialize build create make is has check format write plot show dump state restore resume reset freeze unfreeze
    toggle untoggle requires summary summarize display visualize report broadcast reduce gather barrier synchronize wait
    seed time timer tic toc start stop"""
)
"""In the name of a call that cannot be read: it trains nothing, whatever it is given."""
GRADIENTS = word_set("grad grads gradient gradients")
WRITES = word_set(
    """set load assign copy put fill apply average reduce sync synchronize allreduce accumulate reset zero clear init
    initialize make free wipe none empty prepare process unscale"""
)
"""With one of :data:`GRADIENTS`: the call gives parameters their gradients."""
TRAINING_OWNERS = word_set(
    """agent policy trainer learner algo algorithm solver model engine runner ppo sac dqn ddpg td3 optim optimizer
    opt"""
)
WRAPPERS = word_set("accelerator fabric engine strategy plugin booster")
"""Training frameworks whose objects have a ``backward``, a clip or a ``step`` of their own."""
HARMLESS = word_set(
    """no_grad enable_grad set_grad_enabled inference_mode autocast scale_loss master_params no_sync disable_grad
    gradient_checkpointing_enable gradient_checkpointing_disable end_training register_forward_hook
    register_forward_pre_hook register_full_backward_hook register_hook register_buffer register_parameter"""
)
"""Calls that change no gradient, whatever their names suggest."""
PREPARES = word_set("prepare set init initialize reset start clear zero none free wipe make begin")
"""In the name of a call that cannot be read: it may clear gradients, if it is given what has them."""
HOOK_WORDS = word_set("on before after pre post begin end notify fire emit trigger dispatch callback callbacks")
"""In the name of a method that cannot be read: it may run whatever listens, a clearing too."""
PRECISION = word_set("unscale scaler amp precision plugin strategy scale half mixed autocast")
"""In the name of what may change the scale of a loss."""
WATCHERS = word_set(
    """log logging logger loggers writer timer meter meters metric metrics stats recorder monitor watch epoch rng seed
    buffer memory replay queue dataset loader dataloader data next sample get time ddp_timer loss"""
)
"""In names of what looks on, or deals with data."""
REDUCES = word_set("avg average allreduce reduce")
"""With one of :data:`GRADIENTS`: what is done to gradients between backward and step on several machines."""
KEEPS_SIZE = REDUCES | word_set(
    "copy sync synchronize share broadcast gather push send noise log logging record check save track plot"
)
"""With one of :data:`GRADIENTS`: what is done to gradients that is no clip."""
OF_WEIGHTS = word_set("weight weights")
"""With ``clip``: what is limited are the weights, no gradient."""
PASSIVE = word_set("polyak soft hard ema target moving symlink")
"""With ``update``: a copy of the weights is moved, no gradient."""
PASSIVE_OWNERS = word_set(
    "ema target out output outputs stats inputs kwargs dict state meter metrics info averaged swa logs"
)
"""In the name of an object whose ``update`` trains nothing."""
STANDARD = frozenset(sys.stdlib_module_names) | word_set(
    """torch numpy np tqdm wandb einops scipy pandas matplotlib sklearn cv2 PIL tensorboardX torchvision torchaudio
    yaml omegaconf hydra rich loguru absl cupy"""
)
"""Libraries none of whose functions runs a backward or a step, but for torch's own, which are read by name."""
BUILTINS = frozenset(dir(builtins))


def words(name: str) -> list[str]:
    """The lower-case words of an identifier: ``self.optimizerG`` gives ``self optimizer g``."""
    return [word.lower() for word in _WORD.findall(name)]


def tells_listeners(name: str) -> bool:
    """Whether a call that cannot be read tells whatever listens that something happens: ``self.on_batch_start()``."""
    return bool(HOOK_WORDS & set(words(name.rsplit(".", 1)[-1])))


def last_name(key: str) -> str:
    """The name that says what an object is: ``self.optims['g']`` gives ``optims``."""
    return re.sub(r"\[.*?\]|\(.*?\)", "", key).rsplit(".", 1)[-1]


def callee(call: ast.Call, name: str | None = None) -> str:
    """The last part of the name of what is called; ``name`` is its dotted name, where that is known."""
    if name:
        return name.rsplit(".", 1)[-1]
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""
