"""The recorder: what happened to gradients during a run, event by event, with the numbers.

Norms are taken on the gradients as they are at that moment. A gradient that came from a scaled loss and has
not been unscaled is remembered per parameter, so that its unscaled norm is known as well.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch

Event = Dict[str, Any]

MAX_EVENTS = 400
MAX_STEPS = 3
"""Iterations with an optimizer step after which a training loop has shown what it does."""
MAX_IDLE = 16
"""Iterations with events but without a step (a long accumulation window) after which a loop is left."""
MAX_TOTAL_STEPS = 6
MAX_ROUNDS = 2
"""Rounds of a loop around training loops."""
DELTA_LIMIT = 4_000_000
"""Parameters above which the change of the weights is not measured (it needs a copy of them)."""
UNSCALED_WITHIN = 0.01
"""Relative deviation from the inverse of the scale up to which a change of the gradient counts as unscaling."""
KEYS_SHOWN = 64
MAX_TROUBLES = 20


class Stop(BaseException):
    """Ends a path: enough was seen."""


@dataclass(frozen=True)
class Limit:
    """A clip that some earlier pass met: over which parameters, and how far it lets them go."""

    keys: Tuple[str, ...]
    max_norm: float
    norm_type: float


@dataclass(eq=False)
class Loop:
    """One loop of the user's program while it runs."""

    module: str
    line: int
    instance: int
    iteration: int = 0
    steps: int = 0
    """Iterations that held a backward and a step."""
    idle: int = 0
    """Iterations with events but no step since the last iteration with one."""
    rounds: int = 0
    """Iterations whose steps were all made by loops inside."""
    events: int = 0
    all_steps: int = 0
    nested_steps: int = 0
    quiet: int = 0
    """Iterations in which nothing was recorded."""
    gave_up: bool = False
    """Whether a loop inside was left because it never stepped."""
    unknown: bool = False
    """Whether how long it runs is unknown: its items are ghosts, or its condition is."""


@dataclass
class _Clip:
    params: List[torch.Tensor]
    norm_type: float


@dataclass
class Recorder:
    """Records one path. ``files`` maps code file names to names of sliced modules."""

    entry: str
    files: Dict[str, str]
    stubs: Sequence[str] = ()
    limits: Sequence[Limit] = ()
    deadline: float = float("inf")
    """CPU time of the process at which the path is left."""
    factor: float = 10.0
    """Gradients are scaled up to this many times the limit of the clip."""

    events: List[Event] = field(default_factory=list)
    loops: List[Loop] = field(default_factory=list)
    met: List[Limit] = field(default_factory=list)
    troubles: List[List[Any]] = field(default_factory=list)
    recording: bool = True
    unknown_inputs: bool = False
    """Whether a model of the program's own was given data that the slice does not hold."""
    call: int = 0
    steps: int = 0
    backwards: int = 0
    progress: int = 0
    """Events that change or use gradients; a forward alone trains nothing."""
    loop_count: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        self._keys: Dict[int, str] = {}
        self._params: Dict[str, torch.Tensor] = {}
        self._objects: Dict[int, str] = {}
        self._kept: List[Any] = []
        self._counts: Dict[str, int] = {}
        self._clips: Dict[str, Dict[Tuple[str, ...], _Clip]] = {}
        self._scaled: Dict[int, Tuple[float, float]] = {}
        """Loss scale of a gradient, and its norm right after the backward."""
        self._fresh: Dict[int, bool] = {}
        self._had_grad: Dict[int, bool] = {}
        self.pending_scales: List[float] = []
        """Scales of losses that were scaled and not yet propagated."""
        self.pending_step: Optional[str] = None

    # identity

    def name(self, thing: Any, kind: str) -> str:
        """``optimizer#1``: the same object has the same name in every run."""
        if id(thing) not in self._objects:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._objects[id(thing)] = f"{kind}#{self._counts[kind]}"
            self._kept.append(thing)
        return self._objects[id(thing)]

    def key(self, parameter: torch.Tensor) -> str:
        """``p3``: parameters are numbered in the order in which the run meets them."""
        if id(parameter) not in self._keys:
            self._keys[id(parameter)] = f"p{len(self._keys)}"
            self._params[self._keys[id(parameter)]] = parameter
        return self._keys[id(parameter)]

    def know(self, parameters: Sequence[torch.Tensor]) -> None:
        """Watch these parameters' gradients from now on."""
        for parameter in parameters:
            self.key(parameter)

    @property
    def known(self) -> List[torch.Tensor]:
        """All parameters met so far, in order."""
        return list(self._params.values())

    # places

    def where(self) -> Tuple[str, int, List[List[Any]]]:
        """Module and line of the innermost frame of the user's, and the user's call stack, outermost first."""
        stack: List[List[Any]] = []
        frame: Optional[FrameType] = sys._getframe(1)
        while frame is not None:
            module = self.files.get(frame.f_code.co_filename)
            if module is not None:
                stack.append([module, frame.f_lineno])
            frame = frame.f_back
        if not stack:
            return self.entry, 0, []
        return str(stack[0][0]), int(stack[0][1]), stack[::-1]

    def add(self, kind: str, **values: Any) -> Event:
        """Append an event at the place where the user's code is now; returns it, so that it can be completed."""
        module, line, stack = self.where()
        event: Event = {"kind": kind, "line": line, "iteration": 0, "call": self.call, **values}
        event["stack"] = stack
        event["lines"] = sorted({line for name, line in stack if name == self.entry})
        if module != self.entry:
            event["module"] = module
        event["loops"] = [[loop.module, loop.line, loop.instance, loop.iteration] for loop in self.loops]
        if self.recording:
            self.events.append(event)
        if kind != "forward":
            self.progress += 1
            for loop in self.loops:
                loop.events += 1
        if len(self.events) >= MAX_EVENTS or time.process_time() > self.deadline:
            raise Stop("enough")
        return event

    def note(self, text: str, line: int = 0) -> None:
        """Remember why a statement could not run, for the one who wonders what is missing."""
        if len(self.troubles) < MAX_TROUBLES:
            self.troubles.append([line or self.where()[1], text[:200]])

    # gradients

    def note_gradients(self) -> None:
        """Remember which known parameters have a gradient, to notice ``p.grad = None`` later."""
        for parameter in self.known:
            self._had_grad[id(parameter)] = parameter.grad is not None

    def cleared_since(self) -> int:
        """How many gradients vanished since the last look; they are no longer fresh nor scaled."""
        count = 0
        for parameter in self.known:
            gone = parameter.grad is None or not bool(parameter.grad.any())
            if gone and self._had_grad.get(id(parameter), False):
                count += 1
                self._scaled.pop(id(parameter), None)
                self._fresh[id(parameter)] = False
        self.note_gradients()
        for parameter in self.known:
            if parameter.grad is not None and not bool(parameter.grad.any()):
                self._had_grad[id(parameter)] = False
        return count

    def unscaled(self, parameters: Sequence[torch.Tensor]) -> None:
        """The gradients of these were divided by the loss scale."""
        for parameter in parameters:
            self._scaled.pop(id(parameter), None)

    def scale_of(self, parameters: Sequence[torch.Tensor]) -> float:
        """The loss scale these gradients still carry; 1 for none."""
        scales = (self._scaled.get(id(p), (1.0, 0.0))[0] for p in parameters if p.grad is not None)
        return max(scales, default=1.0)

    def notice_unscaling(self) -> None:
        """After the program wrote to gradients itself: those divided by their scale are no longer scaled."""
        for parameter in self.known:
            scale, size = self._scaled.get(id(parameter), (1.0, 0.0))
            if size and parameter.grad is not None and abs(norm([parameter]) * scale / size - 1.0) < UNSCALED_WITHIN:
                self._scaled.pop(id(parameter))

    def fresh(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Whether a backward reached any of these since their last step or clearing."""
        return any(self._fresh.get(id(p), False) for p in parameters)

    def used(self, parameters: Sequence[torch.Tensor]) -> None:
        """A step consumed these gradients."""
        for parameter in parameters:
            self._fresh[id(parameter)] = False

    def clip_at(self, places: Sequence[str], params: List[torch.Tensor], max_norm: float, norm_type: float) -> None:
        """Remember a clip by its line, and by the lines it was called from.

        One line may clip parameter by parameter, each on its own.
        """
        self.know(params)
        keys = tuple(self.key(p) for p in params)
        for place in places:
            self._clips.setdefault(place, {})[keys] = _Clip(params, norm_type)
        limit = Limit(keys, max_norm, norm_type)
        if 0.0 < max_norm < float("inf") and keys and limit not in self.met:
            self.met.append(limit)

    def norms(self, own: Sequence[torch.Tensor]) -> Tuple[Dict[str, float], Dict[str, float]]:
        """Norm over each clip's parameters that ``own`` holds too, by the clip's line: as it is, and unscaled.

        Where one line clipped several sets, the largest of their norms.
        """
        mine = {id(p) for p in own}
        raw: Dict[str, float] = {}
        plain: Dict[str, float] = {}
        for place, clips in self._clips.items():
            for clip in clips.values():
                common = [p for p in clip.params if id(p) in mine]
                if common:
                    size = norm(common, clip.norm_type)
                    raw[place] = max(raw.get(place, 0.0), size)
                    plain[place] = max(plain.get(place, 0.0), size / self.scale_of(common))
        return raw, plain

    # the backward pass

    def snapshot(self) -> Dict[int, Tuple[Optional[int], Optional[int], Optional[torch.Tensor]]]:
        """The gradients before a backward pass; copies only where they may have to be told apart."""
        result: Dict[int, Tuple[Optional[int], Optional[int], Optional[torch.Tensor]]] = {}
        for parameter in self.known:
            grad = parameter.grad
            if grad is None:
                result[id(parameter)] = (None, None, None)
            else:
                copy = grad.detach().clone() if self.limits else None
                result[id(parameter)] = (id(grad), grad._version, copy)
        return result

    def after_backward(
        self, before: Dict[int, Tuple[Optional[int], Optional[int], Optional[torch.Tensor]]], scale: Optional[float]
    ) -> Tuple[List[torch.Tensor], float]:
        """Mark what a backward reached, and scale its contribution to ``factor`` times the limits.

        Returns the parameters it reached and the factor applied. Scaling the contribution is scaling the
        cotangent: backward is linear in it.
        """
        reached: List[torch.Tensor] = []
        for parameter in self.known:
            old = before.get(id(parameter), (None, None, None))
            grad = parameter.grad
            if grad is not None and (old[0] != id(grad) or old[1] != grad._version):
                reached.append(parameter)
                self._fresh[id(parameter)] = True
        factor = self._scale_up(reached, before, scale or 1.0)
        if scale is not None:
            self._scaled.update({id(p): (scale, norm([p])) for p in reached})
        self.note_gradients()
        return reached, factor

    def _scale_up(
        self,
        reached: Sequence[torch.Tensor],
        before: Dict[int, Tuple[Optional[int], Optional[int], Optional[torch.Tensor]]],
        scale: float,
    ) -> float:
        if not self.limits or not reached:
            return 1.0
        ids = {id(p) for p in reached}
        parts: Dict[int, torch.Tensor] = {}
        for parameter in reached:
            grad, old = parameter.grad, before.get(id(parameter), (None, None, None))[2]
            if grad is not None:
                parts[id(parameter)] = grad.detach() if old is None else grad.detach() - old
        factor = 1.0
        for limit in self.limits:
            clipped = [self._params[k] for k in limit.keys if k in self._params]
            here = [parts[id(p)] for p in clipped if id(p) in ids and id(p) in parts]
            size = norm_of(here, limit.norm_type) / scale
            if 0.0 < size < self.factor * limit.max_norm:
                factor = max(factor, self.factor * limit.max_norm / size)
        if factor > 1.0:
            with torch.no_grad():
                for parameter in reached:
                    if parameter.grad is not None and id(parameter) in parts:
                        parameter.grad.add_(parts[id(parameter)].clone(), alpha=factor - 1.0)
        return factor


def norm_of(tensors: Sequence[torch.Tensor], norm_type: float) -> float:
    """The total norm of several tensors taken as one vector."""
    if not tensors:
        return 0.0
    with torch.no_grad():
        parts = torch.stack([torch.linalg.vector_norm(t.detach().to_dense().double(), norm_type) for t in tensors])
        return float(torch.linalg.vector_norm(parts, norm_type))


def norm(parameters: Sequence[torch.Tensor], norm_type: float = 2.0) -> float:
    """The total norm of the gradients of ``parameters``; 0 where there are none."""
    return norm_of([p.grad for p in parameters if p.grad is not None], norm_type)


def number_iterations(events: Sequence[Event]) -> None:
    """Set ``iteration`` of every event: the running number of the training iteration it belongs to.

    The training loop is the innermost loop with a backward and a step in one iteration; where there is none,
    the innermost loop round a step. Outside such a loop the number of the call of the region counts, and an
    event between two iterations belongs to the one before it.
    """
    lines = _training_lines(events)
    numbers: Dict[Tuple[Any, ...], int] = {}
    last = 0
    for event in events:
        inside = [tuple(loop[2:]) for loop in event["loops"] if (loop[0], loop[1]) in lines]
        if inside:
            last = numbers.setdefault((event.get("call", 0), inside[-1]), len(numbers))
        elif not lines:
            last = numbers.setdefault((event.get("call", 0),), len(numbers))
        event["iteration"] = last


def _training_lines(events: Sequence[Event]) -> List[Tuple[str, int]]:
    kinds: Dict[Tuple[Any, ...], Set[str]] = {}
    for event in events:
        for loop in event["loops"]:
            kinds.setdefault(tuple(loop), set()).add(event["kind"])
    found: List[Tuple[str, int]] = []
    for wanted in ({"backward", "step"}, {"step"}):
        for event in events:
            if event["kind"] != "step":
                continue
            for loop in reversed(event["loops"]):
                if wanted <= kinds[tuple(loop)]:
                    if (loop[0], loop[1]) not in found:
                        found.append((loop[0], loop[1]))
                    break
        if found:
            break
    return found
