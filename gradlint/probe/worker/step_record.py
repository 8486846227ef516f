"""The recorder: what happened to gradients during a run, event by event, with the numbers.

An event is a dict. Every one has

* ``kind``, ``line`` (of the innermost frame of the user's), ``module`` (only where that is not the entry module),
  ``stack`` (``[module, line]`` of all the user's frames, outermost first), ``lines`` (those of the entry module);
* ``iteration`` (running number of the training iteration), ``call`` (of the region, where it is called repeatedly),
  ``loops`` (``[module, line, instance, iteration]`` of each loop round it).

``clip``, ``backward``, ``zero_grad``, ``step`` also have ``parameters`` (the keys of the first 64) and
``parameter_count``. "Unscaled" means divided by the loss scale that the gradient still carries. Norms are 2-norms
unless a clip says otherwise. A call that raised has ``error``. The kinds:

``forward``    ``object``: a model with parameters ran.
``backward``   ``scaled``, ``scale``: the loss scale. ``reached``: how many parameters. ``factor``: by which what it
               added was scaled up to exceed the clips (1 where the request says ``same_batch``). ``contributed``:
               norm of what it added, unscaled, after the factor; None where that was not measured. ``stale``: norm,
               unscaled, of what was in the reached gradients already and had been stepped with.
``clip``       ``saw``, ``saw_unscaled``, ``after``: norms (of ``norm_type``) before and after. ``returned``.
               ``max_norm`` (None where it has none), ``norm_type``, ``value_clip``. ``no_gradients``: all are None.
               ``fresh``: a backward came since their last step or clearing. ``parameters_known``: False where an
               unknown collection stood for all parameters. ``exhausted``: it was given an iterator with nothing left.
``step``       ``object``, ``optimizer`` (its class). ``norms``, ``norms_unscaled``: by the line of each clip of the
               path, also one that comes later, the norm over the parameters that the clip and this optimizer share;
               no entry where they share none. ``norm``, ``norm_unscaled``: over all its parameters. ``scaled``.
               ``fresh``: a backward (or the program, by hand) made a gradient since their last step or clearing.
               ``by_hand``: the program wrote a gradient where there was none. ``no_gradients``: all are None.
               ``contributions``: how many backward passes reached its parameters since its previous step;
               ``places``: from how many different places in the program those were made.
               ``accumulated``: the sum of what those contributed to its parameters, each as a norm, unscaled.
               ``kept``: norm at the step, unscaled; ahead of the clip where one reduced it since the last backward.
               ``delta``: the largest change of a weight (0 where the request says ``same_batch``). ``via``: the
               scaler that made the step. ``skipped``: the scaler made none. ``evaluation``: number of the closure's
               run. ``fenced``: a framework makes nothing of this call (no ``norms`` then).
``zero_grad``  ``object`` (``optimizer#1``, ``module#1``, or ``assignment`` for a statement that wrote to ``.grad``),
               ``saw``: the norm ahead of it, ``fresh``, ``cleared``: how many gradients vanished. ``fenced``.
``scale``      ``object``, ``scale``: a loss was multiplied.
``unscale``    ``object``, ``optimizer``, ``internal`` (made by the scaler's own step).
``scaler_update``
``consume``    ``name``: the iterator (or list) that the request asked about; ``yielded``: how many items this consumer
               got; ``first``: nobody consumed it before; ``by``: ``clip``, ``optimizer`` or ``other``; ``error``: what
               its consumer raised.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

from step_grads import ClipSeen, Gradients
from step_remedy import Remedy
from step_same import SameBatch

Event = Dict[str, Any]

MAX_EVENTS = 1200
MAX_STEPS = 3
"""Iterations with an optimizer step after which a training loop has shown what it does."""
MAX_IDLE = 16
"""Iterations with events but without a step after which a loop is left."""
MAX_GATHERING = 64
"""The same for iterations with a backward: a long accumulation window."""
MAX_PASSES = 32
"""Iterations that run a model and do nothing else (a rollout, an evaluation) after which a loop is left."""
MAX_TOTAL_STEPS = 6
MAX_ROUNDS = 3
"""Rounds of a loop around training loops."""
DELTA_LIMIT = 4_000_000
"""Parameters above which the change of the weights is not measured (it needs a copy of them)."""
KEYS_SHOWN = 64
MAX_TROUBLES = 20


class Stop(BaseException):
    """Ends a path: enough was seen."""


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
    gathering: int = 0
    """Those of them that held a backward."""
    rounds: int = 0
    """Iterations whose steps were all made by loops inside."""
    events: int = 0
    all_steps: int = 0
    nested_steps: int = 0
    quiet: int = 0
    """Iterations in which nothing was recorded."""
    passes: int = 0
    """Those of them that ran a model."""
    gave_up: bool = False
    """Whether a loop inside was left because it never stepped."""
    unknown: bool = False
    """Whether how long it runs is unknown: its items are ghosts, or its condition is."""

    @property
    def hopeless(self) -> bool:
        """Whether it went on for too long without a step."""
        return self.idle >= MAX_GATHERING or self.idle - self.gathering >= MAX_IDLE


@dataclass
class Recorder:
    """Records one path. ``files`` maps code file names to names of sliced modules."""

    entry: str
    files: Dict[str, str]
    stubs: Sequence[str] = ()
    seen: Sequence[ClipSeen] = ()
    """The clips that an earlier pass met."""
    deadline: float = float("inf")
    """CPU time of the process at which the path is left."""
    same: Optional[SameBatch] = None
    """Set where every iteration is to get the same data, and no weight is to move."""
    quiet: int = 0
    """Rounds of loops in which nothing was recorded."""
    overflow: bool = False
    """Whether the next scaled backward is to overflow."""
    asked: FrozenSet[int] = frozenset()
    """The lines of the entry module that the request asks about."""
    remedy: Optional[Remedy] = None
    """What the run does otherwise than the text says."""

    events: List[Event] = field(default_factory=list)
    loops: List[Loop] = field(default_factory=list)
    troubles: List[List[Any]] = field(default_factory=list)
    recording: bool = True
    unknown_inputs: bool = False
    """Whether a model of the program's own was given data that the slice does not hold."""
    call: int = 0
    steps: int = 0
    backwards: int = 0
    forwards: int = 0
    progress: int = 0
    """Events that change or use gradients; a forward alone trains nothing."""
    loop_count: int = 0
    depth: int = 0
    consumer: str = "other"
    """What kind of call is taking the items of an iterator of parameters."""

    def __post_init__(self) -> None:
        self.grads = Gradients(self.seen, repeat=self.same is not None)
        self._objects: Dict[int, str] = {}
        self._kept: List[Any] = []
        self._counts: Dict[str, int] = {}
        self.pending_scales: List[float] = []
        """Scales of losses that were scaled and not yet propagated."""
        self.pending_step: Optional[str] = None

    @property
    def clips_nothing(self) -> bool:
        """Whether clips are only recorded."""
        return self.same is not None or "clip" in self.stubs

    # identity

    def name(self, thing: Any, kind: str) -> str:
        """``optimizer#1``: the same object has the same name in every run, and so have its wrappers."""
        while hasattr(type(thing), "gl_wraps"):
            thing = thing.optimizer
        if id(thing) not in self._objects:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._objects[id(thing)] = f"{kind}#{self._counts[kind]}"
            self._kept.append(thing)
        return self._objects[id(thing)]

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

    def place(self) -> Tuple[object, ...]:
        """The user's call stack as something to remember it by."""
        return tuple((module, line) for module, line in self.where()[2])

    def add(self, kind: str, **values: Any) -> Event:
        """Append an event at the place where the user's code is now; returns it, so that it can be completed."""
        module, line, stack = self.where()
        event: Event = {"kind": kind, "line": line, "iteration": 0, "call": self.call, **values}
        event["stack"] = stack
        event["lines"] = sorted({line for name, line in stack if name == self.entry})
        if module != self.entry:
            event["module"] = module
        event["loops"] = [[loop.module, loop.line, loop.instance, loop.iteration] for loop in self.loops]
        if (self.recording or kind == "consume") and not self._repeats(event):
            self.events.append(event)
        self.forwards += kind == "forward"
        if kind not in ("forward", "consume"):
            self.progress += 1
            for loop in self.loops:
                loop.events += 1
        if len(self.events) >= MAX_EVENTS or time.process_time() > self.deadline:
            raise Stop("enough")
        return event

    def _repeats(self, event: Event) -> bool:
        """Whether this is one more forward of the same model at the same place, as in a rollout."""
        last = self.events[-1] if self.events and event["kind"] == "forward" else {}
        return all(last.get(k) == event.get(k) for k in ("kind", "line", "module", "object", "call"))

    def note(self, text: str, line: int = 0) -> None:
        """Remember why a statement could not run, for the one who wonders what is missing."""
        if len(self.troubles) < MAX_TROUBLES:
            self.troubles.append([line or self.where()[1], text[:200]])


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
