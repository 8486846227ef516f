"""Accelerate's ``Accelerator`` in one process: accumulation, fences, loss scaling.

After accelerate/accelerator.py and accelerate/optimizer.py (1.15): ``backward`` divides by the accumulation steps;
``accumulate`` counts micro-batches; a prepared optimizer steps and clears only in the last one of a window;
``clip_grad_norm_`` unscales all prepared optimizers and always clips.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Optional

import torch
from ghost import Ghost
from ghost_world import world
from step_wrapped import WrappedOptimizer, unwrapped

_TRUE = frozenset({"is_main_process", "is_local_main_process", "is_last_process"})
_FALSE = frozenset({"optimizer_step_was_skipped", "use_distributed"})


class GradientAccumulationPlugin:
    """Holds the accumulation steps."""

    def __init__(self, num_steps: Any = None, **kwargs: Any) -> None:
        self.num_steps = num_steps


class Accelerator:
    """As it is in one process without DeepSpeed, FSDP or Megatron."""

    def __init__(
        self,
        device_placement: Any = True,
        split_batches: Any = False,
        mixed_precision: Any = None,
        gradient_accumulation_steps: Any = 1,
        *args: Any,
        gradient_accumulation_plugin: Any = None,
        **kwargs: Any,
    ) -> None:
        if gradient_accumulation_plugin is not None:
            gradient_accumulation_steps = getattr(gradient_accumulation_plugin, "num_steps", None)
            if gradient_accumulation_steps is None:
                gradient_accumulation_steps = Ghost("accelerator.gradient_accumulation_steps")
        self._steps = gradient_accumulation_steps
        self.mixed_precision = mixed_precision
        self.scaler: Optional[torch.amp.GradScaler] = None
        if mixed_precision == "fp16" and not isinstance(mixed_precision, Ghost):
            self.scaler = torch.amp.GradScaler("cpu")
        self.step = 0
        self.device = torch.device("cpu")
        self.num_processes = 1
        self.process_index = self.local_process_index = 0
        self._optimizers: List[torch.optim.Optimizer] = []
        self._ghosts: Dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_ghosts":
            raise AttributeError(name)
        if name in _TRUE or name in _FALSE:
            return name in _TRUE
        if name not in self._ghosts:
            self._ghosts[name] = Ghost(f"accelerator.{name}")
        return self._ghosts[name]

    @property
    def gradient_accumulation_steps(self) -> Any:
        """How many micro-batches make a step."""
        return self._steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, value: Any) -> None:
        self._steps = value

    @property
    def sync_gradients(self) -> bool:
        """Whether this is the last micro-batch of a window: of all accelerators of a process."""
        return world().gate.open

    @sync_gradients.setter
    def sync_gradients(self, value: Any) -> None:
        world().gate.open = bool(value)

    def _window(self) -> int:
        """The accumulation steps as a number."""
        if isinstance(self._steps, Ghost):
            return max(1, world().window(self._steps))
        return max(1, int(self._steps or 1))

    # preparing

    def prepare(self, *objects: Any, **kwargs: Any) -> Any:
        """The objects, optimizers behind a fence."""
        made = tuple(self._prepared(o) for o in objects)
        return made[0] if len(made) == 1 else made

    prepare_model = prepare_optimizer = prepare_data_loader = prepare_scheduler = prepare

    def _prepared(self, thing: Any) -> Any:
        if isinstance(thing, Ghost):
            thing = world().prepared(thing)
        if not isinstance(thing, torch.optim.Optimizer) or isinstance(thing, WrappedOptimizer):
            return thing
        self._optimizers.append(thing)
        gate = world().gate
        return WrappedOptimizer(thing, lambda: gate.open, lambda: self.scaler)

    def unwrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """The model as it was."""
        return model

    # the step

    @contextlib.contextmanager
    def accumulate(self, *models: Any) -> Iterator[None]:
        """One micro-batch."""
        self.step += 1
        self.sync_gradients = self.step % self._window() == 0
        yield

    @contextlib.contextmanager
    def no_sync(self, model: Any = None) -> Iterator[None]:
        """Nothing in one process."""
        yield

    trigger_sync_in_backward = no_sync

    @contextlib.contextmanager
    def autocast(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Single precision stays what it is."""
        yield

    def backward(self, loss: Any, **kwargs: Any) -> None:
        """Divides by the accumulation steps, scales, and goes back."""
        world().run_backward(loss, self._window(), self.scaler)

    def unscale_gradients(self, optimizer: Any = None) -> None:
        """Of the given optimizers, or of all."""
        chosen = self._optimizers if optimizer is None else optimizer
        for one in chosen if isinstance(chosen, (list, tuple)) else [chosen]:
            if self.scaler is not None:
                self.scaler.unscale_(unwrapped(one))

    def clip_grad_norm_(self, parameters: Any, max_norm: Any, norm_type: Any = 2) -> Any:
        """Clips whenever it is called."""
        self.unscale_gradients()
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    def clip_grad_value_(self, parameters: Any, clip_value: Any) -> None:
        """Clips whenever it is called."""
        self.unscale_gradients()
        torch.nn.utils.clip_grad_value_(parameters, clip_value)

    # one process

    def gather(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """That of this process."""
        return tensor

    gather_for_metrics = reduce = pad_across_processes = gather

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is printed."""

    wait_for_everyone = log = save = save_state = load_state = init_trackers = end_training = print
    register_for_checkpointing = free_memory = print

    def on_main_process(self, function: Any = None) -> Any:
        """This one."""
        return function if function is not None else lambda f: f

    on_local_main_process = on_last_process = on_main_process
