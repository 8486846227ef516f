"""Inputs for a model: a bounded search over shapes, led by what the model complains about.

The search keeps a list of candidate inputs, runs the one that got furthest, reads the error, and adds what the error
asks for. It counts forwards, not seconds, so that it always ends the same way.
"""

from __future__ import annotations

import heapq
import inspect
import math
import random
from dataclasses import dataclass, field, replace
from trace import Intervention, TooLarge, Tracer
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import torch
from model_errors import asked_for
from model_shapes import Arg, first_guesses, ladder
from model_weights import Names
from probe_errors import ProbeError, is_out_of_memory
from torch import Tensor, nn

SEARCH_BATCH, SMALLEST_BATCH = 4, 2
LARGEST = 8e6
"""Numbers in one input of the search's batch; nothing larger is tried unasked."""
HEAVY = 2e7
"""Parameters above which the search begins with the smallest batch."""
FORWARD_LIMIT = 60
"""Forwards that the search may take."""
FORWARD_WORK, LAST_FORWARD_WORK, SEARCH_WORK = 1e10, 3e10, 4e10
"""Multiply-adds that one forward of a search may take, one with the smallest batch, and all together: a bound on the
time that is not a time."""
OPERATION_WORK = 1e6
"""What calling one operation costs, in multiply-adds."""

Spec = Tuple[Arg, ...]


@dataclass(frozen=True)
class Inputs:
    """What a model can be run on. ``stated`` where the project or the user said so."""

    spec: Spec
    stated: bool = False
    batch: int = SEARCH_BATCH
    """The batch that the search ran with."""

    def make(self, batch: Optional[int], seed: int, double: bool = False) -> Tuple[List[Any], Dict[str, Any]]:
        """Positional and keyword arguments, N(0, 1) where floating; ``batch`` replaces the first dimension."""
        generator = torch.Generator().manual_seed(seed + 500)
        args: List[Any] = []
        kwargs: Dict[str, Any] = {}
        for arg in self.spec:
            value = arg.make(batch, generator, double)
            if arg.keyword:
                kwargs[arg.name] = value
            else:
                args.append(value)
        return args, kwargs

    def shapes(self, batch: Optional[int]) -> List[List[int]]:
        """The shapes of the tensors among the arguments."""
        args, kwargs = self.make(batch, 0)
        return [list(a.shape) for a in [*args, *kwargs.values()] if isinstance(a, Tensor)]


def with_side(inputs: Inputs, side: int) -> Optional[Inputs]:
    """The same inputs with images of ``side`` times ``side``; None where there are none, or only smaller ones."""
    spec = tuple(
        replace(a, shape=(*a.shape[:2], side, side)) if a.kind == "float" and len(a.shape) == 4 else a
        for a in inputs.spec
    )
    larger = all(min(a.shape[2:]) > side for a in inputs.spec if a.kind == "float" and len(a.shape) == 4)
    return replace(inputs, spec=spec) if spec != inputs.spec and larger else None


@dataclass
class Seen:
    """One forward of a model: what was recorded, and what came out."""

    model: nn.Module
    tracer: Tracer
    outputs: List[Tensor]
    weights: Dict[int, Tensor]
    """The effective weight of each weight layer, by running number."""


class _Weights(Intervention):
    """Keeps the weight of every call."""

    def __init__(self) -> None:
        self.weights: Dict[int, Tensor] = {}

    def weight(self, call: int, weight: Tensor, names: Names) -> Tensor:
        """Note it, leave it."""
        self.weights[call] = weight.detach()
        return weight


def observe(model: nn.Module, lines: Mapping[int, int], inputs: Inputs, batch: Optional[int]) -> Seen:
    """Run the model once. What it raises passes through."""
    recorder = _Weights()
    return _run(model, Tracer(model, lines, recorder), recorder, inputs, batch)


def _run(model: nn.Module, tracer: Tracer, recorder: _Weights, inputs: Inputs, batch: Optional[int]) -> Seen:
    seed_all(0)
    args, kwargs = inputs.make(batch, 0)
    _, outputs = tracer.trace(args, kwargs)
    return Seen(model, tracer, outputs, recorder.weights)


@dataclass(order=True)
class _Candidate:
    priority: Tuple[float, int]
    spec: Spec = field(compare=False)


class Search:
    """One search for the inputs of one built model."""

    def __init__(
        self, model: nn.Module, lines: Mapping[int, int], sizes: Mapping[str, Any], limit: int = FORWARD_LIMIT
    ) -> None:
        self.model = model
        self.lines = lines
        self.limit = limit
        self.sizes = sizes
        """Constructor arguments by name: they say how large inputs should be."""
        self.error: Optional[BaseException] = None
        """What the attempt that got furthest ended with."""
        self._progress = -1
        self._forwards = 0
        self._work = 0.0
        heavy = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p)) > HEAVY
        self.batch = SMALLEST_BATCH if heavy else SEARCH_BATCH
        """Made smaller where one forward is too much work."""
        self.seen: Optional[Seen] = None
        """The forward that went through."""
        self._seen: Set[Any] = set()
        self._queue: List[_Candidate] = []

    def run(self, hints: Sequence[Sequence[int]], called_with: Optional[Spec] = None) -> Inputs:
        """The first inputs that the model takes. Raises ``not-built`` where the search ends without.

        ``hints`` are the user's own shapes; nothing else is tried then. ``called_with`` is how the project calls it.
        """
        signature = forward_signature(self.model)
        if hints:
            return self._stated(hints, signature)
        if called_with is not None:
            self._push(called_with, 1.0, 0)
        for i, spec in enumerate(first_guesses(self.model, signature, self.sizes)):
            self._push(spec, 0.0, i)
        tries = ladder(self.model, signature, self.sizes)
        while self._forwards < self.limit and self._work < SEARCH_WORK:
            if not self._queue:
                further = next(tries, None)
                if further is None:
                    break
                self._push(further, 0.0, 0)
                continue
            candidate = heapq.heappop(self._queue)
            if self._works(candidate.spec):
                return Inputs(candidate.spec, batch=self.batch)
        raise self._failure()

    def _stated(self, hints: Sequence[Sequence[int]], signature: inspect.Signature) -> Inputs:
        names = [p.name for p in signature.parameters.values()]
        args = [Arg(names[i] if i < len(names) else f"input{i}", tuple(s), fixed=True) for i, s in enumerate(hints)]
        for kinds in ("float", "int"):
            spec = tuple(replace(a, kind=kinds) for a in args)
            self._push(spec, 0.0, 0)
        while self._queue:
            candidate = heapq.heappop(self._queue)
            if self._works(candidate.spec, follow=False):
                return Inputs(candidate.spec, stated=True)
        raise self._failure()

    def _push(self, spec: Spec, progress: float, order: int) -> None:
        if any(math.prod(a.shape) > LARGEST and not a.fixed for a in spec):
            return
        if spec not in self._seen and len(self._seen) < 10 * FORWARD_LIMIT:
            self._seen.add(spec)
            heapq.heappush(self._queue, _Candidate((-progress, order + 10 * len(self._seen)), spec))

    def _works(self, spec: Spec, follow: bool = True) -> bool:
        """Run the model once; after an error queue what the error asks for."""
        self._forwards += 1
        limit = FORWARD_WORK if self.batch > SMALLEST_BATCH else LAST_FORWARD_WORK
        recorder = _Weights()
        tracer = Tracer(self.model, self.lines, recorder, limit)
        try:
            self.seen = _run(self.model, tracer, recorder, Inputs(spec), self.batch)
        except ProbeError:
            raise
        except TooLarge as error:
            self._work += limit
            self.error = self.error or error
            if self.batch > SMALLEST_BATCH:
                self.batch = SMALLEST_BATCH
                return self._works(spec, follow)
            return False
        except Exception as error:  # the user's code: any exception means that these inputs do not fit
            if is_out_of_memory(error):
                raise
            self._work += tracer.work + OPERATION_WORK * (len(tracer.nodes) + 20)
            progress = float(len(tracer.nodes))
            if progress > self._progress:
                self._progress, self.error = int(progress), error
            if follow:
                for order, better in enumerate(asked_for(spec, error, self.model, self.sizes)):
                    self._push(better, progress, order)
            return False
        return True

    def _failure(self) -> ProbeError:
        shape = "(32, 3, 64, 64)" if _is_image_model(self.model) else "(32, 10)"
        why = f"{type(self.error).__name__}: {self.error}" if self.error else "no input to try"
        why = " ".join(why.split())[:110]
        return ProbeError("not-built", f"no input found ({why}); add `# gradlint: input={shape}`")


def _is_image_model(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in model.modules())


def forward_signature(model: nn.Module) -> inspect.Signature:
    """The parameters of ``forward``, without ``self``. Empty where it cannot be told."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return inspect.Signature()


def seed_all(seed: int) -> None:
    """Seed every generator that a model may draw from."""
    import sys

    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def captured(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> Inputs:
    """Inputs like those that ``model`` was called with somewhere; ``batch`` tells which dimension may vary."""
    names = [p.name for p in forward_signature(model).parameters.values()]
    spec: List[Arg] = []
    for i, value in enumerate(args):
        spec.append(Arg.like(names[i] if i < len(names) else f"input{i}", value, batch, keyword=False))
    spec.extend(Arg.like(name, value, batch, keyword=True) for name, value in kwargs.items())
    return Inputs(tuple(spec), batch=batch)
