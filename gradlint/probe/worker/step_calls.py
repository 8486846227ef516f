"""What calling a ghost does, by the name it was called under.

Training frameworks wrap the calls this project is about: ``accelerator.backward(loss)`` is a backward,
``fabric.clip_gradients(...)`` a clip, ``accelerator.prepare(model, optimizer)`` returns what it was given. The
names are those of Accelerate, Lightning (and Fabric), apex, DeepSpeed and timm, from their documentation.
"""

from __future__ import annotations

import itertools
import re
import types
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

import torch
from ghost import Ghost, GhostTensor, words
from ghost_math import combine, gradients_in, weights_of
from step_consume import Watched
from step_fabric import Toggled, clip_optimizer
from step_roles import OPTIMIZER_NAME
from step_wrapped import WrappedOptimizer, optimizers_in

if TYPE_CHECKING:
    from step_world import RunWorld

Args = Tuple[Any, ...]
Kwargs = Dict[str, Any]
Handler = Callable[["RunWorld", Ghost, Args, Kwargs], Any]

_PASS_THROUGH = words("tqdm trange track progress_bar notebook_tqdm MetricLogger log_every prefetch")
_RETURN_ARGUMENTS = words(
    "prepare setup setup_module setup_optimizers initialize prepare_model prepare_optimizer unwrap_model unwrap "
    "DDP DistributedDataParallel DataParallel FSDP FullyShardedDataParallel fully_shard wrap compile optimize "
    "convert_sync_batchnorm convert_syncbn_model to_device get_peft_model extract_model_from_parallel boost"
)
_WRAPPERS = words(
    "prepare prepare_model prepare_optimizer unwrap_model DDP DistributedDataParallel DataParallel FSDP compile wrap "
    "FullyShardedDataParallel fully_shard convert_sync_batchnorm convert_syncbn_model get_peft_model to_device boost"
)
_SHARDING = words("FSDP FullyShardedDataParallel fully_shard")
_WRAPS_OPTIMIZER = re.compile(r"^(?!.*(Sched|LR|Warm))([A-Z]\w*)?(Optim|Opt$|LAR[CS]|Lookahead|SWA|PCGrad|SAM)")
_GOES_BACK = re.compile(r"^_?(compute_)?back(ward|prop)(_|$)|_backward$|^back_helper$")
"""Functions that are not in the slice, and by their name run a backward pass."""
_ADAPTERS = re.compile(r"adapter|lora|peft|unfreeze|trainable", re.IGNORECASE)
_MODULE_FILE = torch.nn.Module.parameters.__code__.co_filename
_SELF = words("to cuda cpu train eval half float double bfloat16 requires_grad_ detach clone contiguous")
_MODULE_METHODS = words("parameters named_parameters modules named_modules children state_dict")


def call(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """The result of calling ``ghost`` with ``args``."""
    last = ghost.gl_name.rsplit(".", 1)[-1]
    handler = _HANDLERS.get(last)
    if handler is not None:
        result = handler(world, ghost, args, kwargs)
        if result is not NotImplemented:
            return result
    if _GOES_BACK.search(last):
        return _backward(world, ghost, args, kwargs)
    if "scaler" in last.lower() and _is_step_of_all(args, kwargs):
        return _callable_scaler(world, ghost, args, kwargs)
    if _decorates(args, kwargs):
        return args[0]
    wrapped = _wrapped_optimizer(last, args, kwargs)
    if wrapped is not None:
        return wrapped
    if last in _PASS_THROUGH and args:
        return args[0]
    if world.is_model(ghost):
        return world.behind(ghost)(*args, **kwargs)
    text = " ".join(v.gl_name for v in (ghost, *args) if isinstance(v, Ghost))
    if _ADAPTERS.search(ghost.gl_name.partition("(")[0].rsplit(".", 1)[-1]):
        _unfrozen([m for m in (ghost.gl_extra, *args) if isinstance(m, torch.nn.Module)])
    args = tuple(_parameters_in(a, bool(OPTIMIZER_NAME.search(text))) for a in args)
    # a method of a stand-in model depends on the model: model.generate(x), policy.act(inputs)
    sources = (ghost.gl_extra, *args) if isinstance(ghost.gl_extra, torch.nn.Module) else args
    return combine(ghost.gl_name, sources, kwargs, owner=ghost.gl_owner)


def _parameters_in(value: Any, optimizer: bool) -> Any:
    """An iterator of parameters as a list: whoever is given it takes them all, and what makes optimizers is."""
    made_by = value.gi_code.co_filename if isinstance(value, types.GeneratorType) else ""
    lazy = optimizer and isinstance(value, (filter, map, itertools.chain, types.GeneratorType))
    return list(value) if lazy or isinstance(value, Watched) or made_by == _MODULE_FILE else value


def _unfrozen(modules: List[torch.nn.Module]) -> None:
    """What adds adapters to a frozen model gives it parameters to train."""
    for module in modules:
        weights = weights_of(module)
        if not any(p.requires_grad for p in weights):
            for parameter in weights:
                parameter.requires_grad_(True)


def _decorates(args: Args, kwargs: Kwargs) -> bool:
    """``@unknown`` or ``@unknown(...)`` on a function or class: it stays what it is."""
    return len(args) == 1 and not kwargs and isinstance(args[0], (types.FunctionType, type))


def _wrapped_optimizer(last: str, args: Args, kwargs: Kwargs) -> Optional[torch.optim.Optimizer]:
    """``Lookahead(optimizer)``, ``FP16_Optimizer(optimizer, ...)``: by default they step what they wrap."""
    if not last[:1].isupper() or not _WRAPS_OPTIMIZER.search(last):
        return None
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.optim.Optimizer)), None)


def _is_step_of_all(args: Args, kwargs: Kwargs) -> bool:
    values = [*args, *kwargs.values()]
    return bool(gradients_in(args[:1])) and any(isinstance(v, torch.optim.Optimizer) for v in values)


def _callable_scaler(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """timm's ``loss_scaler(loss, optimizer, clip_grad=..., parameters=...)``: backward, clip, step, in this order."""
    optimizer = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.optim.Optimizer))
    world.run_backward(args[0])
    clip, parameters = kwargs.get("clip_grad"), kwargs.get("parameters")
    update = kwargs.get("update_grad", kwargs.get("need_update", True))
    if world.asked(update):
        if clip is not None and parameters is not None and world.asked(clip):
            by_value = kwargs.get("clip_mode") == "value" and not isinstance(kwargs["clip_mode"], Ghost)
            clip_optimizer(parameters, clip if by_value else None, clip)
        optimizer.step()
    return Ghost(f"{ghost.gl_name}()")


def _backward(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    loss = next((v for v in (*args, *kwargs.values()) if gradients_in(v)), None)
    if loss is None:
        loss = next((v for v in args if isinstance(v, Ghost)), ghost.gl_owner)
    world.run_backward(loss)
    return Ghost(f"{ghost.gl_name}()")


def _dispatched_clip(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """timm's ``dispatch_clip_grad(parameters, value, mode)``."""
    named = dict(zip(("parameters", "value", "mode"), args), **kwargs)
    clip: Any = torch.nn.utils.clip_grad_value_ if named.get("mode") == "value" else torch.nn.utils.clip_grad_norm_
    return clip(named.get("parameters"), named.get("value", 1.0))


def _clip_norm(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    holder = ghost.gl_extra
    if isinstance(holder, torch.optim.Optimizer) and not _holds_parameters(args[:1]):
        return clip_optimizer(holder, None, *args[:1])
    if isinstance(holder, torch.nn.Module) and not _holds_parameters(args[:1]) and "parameters" not in kwargs:
        return torch.nn.utils.clip_grad_norm_(weights_of(holder), *args, **kwargs)
    return torch.nn.utils.clip_grad_norm_(*args, **kwargs)


def _clip_master(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """``optimizer.clip_master_grads(max_norm)`` of apex and fairseq: a clip of the optimizer's own parameters."""
    optimizer = world.optimizer_behind(ghost)
    return NotImplemented if optimizer is None or not args else clip_optimizer(optimizer, None, args[0])


def _clip_value(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    return torch.nn.utils.clip_grad_value_(*args, **kwargs)


def _clip_gradients(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """Lightning's ``clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)``, and its like."""
    holders = [v for v in (*args, *kwargs.values()) if isinstance(v, (torch.nn.Module, torch.optim.Optimizer))]
    if not holders:
        return NotImplemented
    plain = [v for v in args if not isinstance(v, (torch.nn.Module, torch.optim.Optimizer))]
    numbers = [v for v in plain if not isinstance(v, str)]
    by_value = "value" in (kwargs.get("gradient_clip_algorithm"), *plain) or kwargs.get("clip_val") is not None
    limit = next((v for k, v in kwargs.items() if k in ("max_norm", "clip_val", "gradient_clip_val")), None)
    limit = limit if limit is not None else (numbers[0] if numbers else Ghost(f"{ghost.gl_name}.limit"))
    return clip_optimizer(holders[-1], limit if by_value else None, limit)


def _holds_parameters(values: Args) -> bool:
    return any(isinstance(v, (torch.Tensor, list, tuple, types.GeneratorType, Ghost, filter)) for v in values)


def _step(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    optimizer = world.optimizer_behind(ghost)
    if optimizer is None:
        return NotImplemented
    result = optimizer.step(*args, **kwargs)
    if isinstance(ghost.gl_extra, torch.nn.Module):
        optimizer.zero_grad()  # an engine clears what it has stepped with
    return result


def _zero_grad(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    optimizer = world.optimizer_behind(ghost)
    if optimizer is not None:
        return optimizer.zero_grad(*args, **kwargs)
    owner = ghost.gl_owner
    if owner is not None and not isinstance(owner, GhostTensor):
        return world.behind(owner).zero_grad()
    return NotImplemented


def _first_step(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """SAM's ``first_step(zero_grad=False)``: weights go uphill for the second pass; no update yet."""
    optimizer = world.optimizer_behind(ghost)
    if optimizer is None:
        return NotImplemented
    if world.asked(kwargs.get("zero_grad", args[0] if args else False)):
        optimizer.zero_grad()
    return None


def _second_step(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """SAM's ``second_step(zero_grad=False)``: the update."""
    optimizer = world.optimizer_behind(ghost)
    if optimizer is None:
        return NotImplemented
    optimizer.step()
    return _first_step(world, ghost, args, kwargs)


def _module_method(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    last = ghost.gl_name.rsplit(".", 1)[-1]
    module = world.module_behind(ghost)
    if module is None:
        return NotImplemented
    plain = {k: v for k, v in kwargs.items() if not isinstance(v, Ghost)}
    return getattr(module, last)(**plain)


def _self(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    owner = ghost.gl_owner
    if owner is None or (isinstance(owner, GhostTensor) and ghost.gl_name.endswith(".detach")):
        return NotImplemented
    return owner


def _arguments(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    values: List[Any] = [*args]
    values += [v for v in kwargs.values() if isinstance(v, (torch.nn.Module, torch.optim.Optimizer))]
    real = [v for v in values if isinstance(v, (torch.nn.Module, torch.optim.Optimizer))]
    last = ghost.gl_name.rsplit(".", 1)[-1]
    if not real:
        return _as_given(last, args)
    if last in _SHARDING and isinstance(real[0], torch.nn.Module):
        _shard(real[0])
    if last[:1].isupper() or last in ("compile", "wrap", "unwrap", "unwrap_model", "get_peft_model", "fully_shard"):
        return real[0]
    return values[0] if len(values) == 1 else tuple(values)


def _as_given(last: str, args: Args) -> Any:
    """Of unknowns, wrappers return the very same unknowns."""
    if not args or last not in _WRAPPERS or not all(isinstance(a, Ghost) for a in args):
        return NotImplemented
    return args[0] if len(args) == 1 or last[:1].isupper() else tuple(args)


def _shard(module: torch.nn.Module) -> None:
    """FSDP models clip themselves."""

    def clip_grad_norm_(max_norm: Any, norm_type: Any = 2.0) -> Any:
        return torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm, norm_type)

    module.__dict__.setdefault("clip_grad_norm_", clip_grad_norm_)


def _items(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    owner = ghost.gl_owner if ghost.gl_owner is not None else ghost
    last = ghost.gl_name.rsplit(".", 1)[-1]
    keys = ["key0", "key1"]
    if last == "keys":
        return keys
    values = [owner[k] for k in keys]
    return values if last == "values" else [(key, owner[key]) for key in keys]


def _master_params(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    optimizers = [a for a in args if isinstance(a, torch.optim.Optimizer)]
    if not optimizers:
        return NotImplemented
    return (p for g in optimizers[0].param_groups for p in g["params"])


def _optimizers(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """Lightning's ``self.optimizers()``: what ``configure_optimizers`` returns, wrapped."""
    found = _configured(ghost.gl_extra)
    if not found:
        return NotImplemented
    return found[0] if len(found) == 1 else list(found)


def _configured(instance: Any) -> List[torch.optim.Optimizer]:
    configure: Optional[Callable[[], Any]] = getattr(type(instance), "configure_optimizers", None)
    if instance is None or configure is None:
        return []
    if "gl_optimizers" not in instance.__dict__:
        made = optimizers_in(instance.configure_optimizers())
        instance.__dict__["gl_optimizers"] = [WrappedOptimizer(o) for o in made]
    found: List[torch.optim.Optimizer] = instance.__dict__["gl_optimizers"]
    return found


def _toggle(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """Lightning's ``toggle_optimizer``, ``untoggle_optimizer``, and the block ``toggled_optimizer``."""
    instance = ghost.gl_extra
    optimizer = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.optim.Optimizer)), None)
    if instance is None or optimizer is None:
        return NotImplemented
    toggled = instance.__dict__.setdefault("gl_toggled", Toggled(_configured(instance)))
    last = ghost.gl_name.rsplit(".", 1)[-1]
    if last == "untoggle_optimizer":
        return toggled.off()
    toggled.on(optimizer)
    return toggled


def _scale(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    """``unknown.scale(loss)``: loss scaling by whoever it is."""
    scaler = world.scaler_behind(ghost)
    return NotImplemented if scaler is None or not gradients_in(args[:1]) else scaler.scale(*args, **kwargs)


def _unscale(world: RunWorld, ghost: Ghost, args: Args, kwargs: Kwargs) -> Any:
    scaler = world.scaler_behind(ghost)
    return NotImplemented if scaler is None else scaler.unscale_(*args, **kwargs)


_HANDLERS: Dict[str, Handler] = {
    "backward": _backward,
    "manual_backward": _backward,
    "clip_grad_norm_": _clip_norm,
    "clip_grad_norm": _clip_norm,
    "dispatch_clip_grad": _dispatched_clip,
    "clip_grad_value_": _clip_value,
    "clip_gradients": _clip_gradients,
    "clip_master_grads": _clip_master,
    "step": _step,
    "zero_grad": _zero_grad,
    "items": _items,
    "keys": _items,
    "values": _items,
    "master_params": _master_params,
    "optimizers": _optimizers,
    "first_step": _first_step,
    "second_step": _second_step,
    "step_and_update_lr": _step,
    "pc_backward": _backward,
    "toggle_optimizer": _toggle,
    "untoggle_optimizer": _toggle,
    "toggled_optimizer": _toggle,
    "scale": _scale,
    "unscale_": _unscale,
}
_HANDLERS.update(dict.fromkeys(_MODULE_METHODS, _module_method))
_HANDLERS.update(dict.fromkeys(_SELF, _self))
_HANDLERS.update(dict.fromkeys(_RETURN_ARGUMENTS, _arguments))
