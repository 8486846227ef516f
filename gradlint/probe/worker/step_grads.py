"""The ledger of gradients: what is known of every parameter's gradient at any moment of a run.

Norms are taken on the gradients as they are at that moment. A gradient that came from a scaled loss and has
not been unscaled is remembered per parameter, so that its unscaled norm is known as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

import torch

UNSCALED_WITHIN = 0.01
"""Relative deviation from the inverse of the scale up to which a change of the gradient counts as unscaling."""
REDUCED = 1.0 - 1e-6
"""A gradient whose norm fell below this share was clipped, by a function or by hand."""
COPY_LIMIT = 16_000_000
"""Entries of gradients above which a backward pass is measured without a copy of what was there before."""
MAX_CLIPS = 64
"""Clips told apart by place, parameters and limit."""

Part = Optional[torch.Tensor]


@dataclass(frozen=True)
class ClipSeen:
    """A clip that some pass met: where, over which parameters, and how far it lets them go."""

    places: Tuple[str, ...]
    keys: Tuple[str, ...]
    max_norm: float
    norm_type: float

    @property
    def limits(self) -> bool:
        """Whether it holds anything back."""
        return bool(self.keys) and 0.0 < self.max_norm < math.inf


@dataclass(frozen=True)
class Before:
    """One gradient ahead of a backward pass; its norm only where a step has used it."""

    tensor: Part
    version: int
    size: float
    copy: Part


@dataclass
class Pass:
    """What one backward pass did."""

    reached: List[torch.Tensor] = field(default_factory=list)
    factor: float = 1.0
    contributed: Optional[float] = 0.0
    """Norm of what it added, unscaled; None where that was too large to be told from what was there."""
    stale: float = 0.0
    """Norm of what was there already and had been stepped with, unscaled."""


class Gradients:
    """The gradients of one run. Parameters are known by keys that are the same in every run of a path.

    They are numbered as the run meets them (``p3``); those of stand-ins have the name of their stand-in.
    """

    def __init__(self, seen: Sequence[ClipSeen] = (), factor: float = 10.0, repeat: bool = False) -> None:
        self.limits = [clip for clip in seen if clip.limits and not repeat]
        self.factor = factor
        """Gradients are scaled up to this many times the limit of a clip."""
        self.repeat = repeat
        """Whether a backward pass adds the same each time it is made from the same place."""
        self.met: List[ClipSeen] = []
        self.trained: Set[int] = set()
        """The parameters that an optimizer holds or a clip was given."""
        self.touched: Dict[int, torch.Tensor] = {}
        """The parameters that some event was about."""
        self._numbered = 0
        self._keys: Dict[int, str] = {}
        self._params: Dict[str, torch.Tensor] = {}
        self._clips: Dict[str, Dict[Tuple[str, ...], float]] = {}
        self._scaled: Dict[int, Tuple[float, float]] = {}
        """Loss scale of a gradient, and its norm right after the backward."""
        self._fresh: Dict[int, bool] = {}
        self._by_hand: Set[int] = set()
        """Gradients that the program wrote where there were none."""
        self._noted: Dict[int, float] = {}
        """Norm of a gradient at the last look."""
        self._stale: Dict[int, float] = {}
        """Norm, unscaled, of a gradient that a step consumed and nothing has cleared."""
        self._ahead: Dict[int, float] = {}
        """Norm, unscaled, that a gradient had before a clip, since the last backward."""
        self._passes: List[Tuple[Tuple[object, ...], Mapping[int, float]]] = []
        """For each backward pass its place, and the norm, unscaled, of what it added to each parameter."""
        self._seen_passes: Dict[str, int] = {}
        """How many passes there were at the last step of an optimizer."""
        self._first: Dict[Tuple[object, ...], Dict[int, torch.Tensor]] = {}
        for clip in seen:
            self._know_clip(clip)

    # identity

    def key(self, parameter: torch.Tensor) -> str:
        """``p3``: parameters are numbered in the order in which the run meets them."""
        if id(parameter) not in self._keys:
            self._numbered += 1
            self._name(parameter, f"p{self._numbered - 1}")
        return self._keys[id(parameter)]

    def _name(self, parameter: torch.Tensor, key: str) -> None:
        self._keys[id(parameter)] = key
        self._params[key] = parameter

    def know_as(self, name: str, parameters: Iterable[torch.Tensor]) -> None:
        """Watch the parameters of a stand-in: it may be made at another time in another run."""
        for number, parameter in enumerate(parameters):
            key = f"{name}/{number}"
            if id(parameter) not in self._keys and key not in self._params:
                self._name(parameter, key)
            self.key(parameter)

    def know(self, parameters: Iterable[torch.Tensor]) -> None:
        """Watch these parameters' gradients from now on."""
        for parameter in parameters:
            self.key(parameter)

    def train(self, parameters: Iterable[torch.Tensor]) -> None:
        """These are trained: an optimizer holds them."""
        for parameter in parameters:
            self.key(parameter)
            self.trained.add(id(parameter))

    @property
    def known(self) -> List[torch.Tensor]:
        """All parameters met so far, in order."""
        return list(self._params.values())

    # looking

    def note(self, parameters: Iterable[torch.Tensor]) -> None:
        """Remember how large these gradients are, to notice later that the program wrote to them."""
        for parameter in parameters:
            self._noted[id(parameter)] = norm([parameter])

    def scale_of(self, parameters: Iterable[torch.Tensor]) -> float:
        """The loss scale these gradients still carry; 1 for none."""
        scales = (self._scaled.get(id(p), (1.0, 0.0))[0] for p in parameters if p.grad is not None)
        return max(scales, default=1.0)

    def fresh(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Whether a backward reached any of these since their last step or clearing."""
        return any(self._fresh.get(id(p), False) for p in parameters)

    def _plain(self, parameter: torch.Tensor) -> float:
        """The norm of one gradient as it is now, unscaled."""
        return norm([parameter]) / self.scale_of([parameter])

    # clearing and writing

    def clearable(self, parameters: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Those of them that hold a gradient that is not zero, or that a backward just made."""
        return [p for p in parameters if p.grad is not None and (norm([p]) > 0.0 or self._fresh.get(id(p), False))]

    def cleared(self, parameters: Sequence[torch.Tensor]) -> int:
        """After a call that clears: how many of these, which held a gradient, hold none any more."""
        gone = [p for p in parameters if p.grad is None or norm([p]) == 0.0]
        for parameter in gone:
            self._forget(parameter)
        return len(gone)

    def written(self) -> Tuple[int, int]:
        """After the program wrote to gradients itself: how many it made, and how many vanished.

        Others were unscaled, or clipped.
        """
        made = gone = 0
        for parameter in self.known:
            noted, now = self._noted.get(id(parameter), 0.0), norm([parameter])
            if noted == now:
                continue
            if now == 0.0:
                gone += 1
                self._forget(parameter)
                continue
            scale, size = self._scaled.get(id(parameter), (1.0, 0.0))
            if size and abs(now * scale / size - 1.0) < UNSCALED_WITHIN:
                self._scaled.pop(id(parameter))
                noted = noted / scale
            if now < REDUCED * noted:
                self._ahead.setdefault(id(parameter), noted / self.scale_of([parameter]))
            elif not noted:
                self._fresh[id(parameter)] = True
                self._by_hand.add(id(parameter))
                made += 1
            self._noted[id(parameter)] = now
        return made, gone

    def _forget(self, parameter: torch.Tensor) -> None:
        for ledger in (self._scaled, self._stale, self._ahead):
            ledger.pop(id(parameter), None)
        self._by_hand.discard(id(parameter))
        self._fresh[id(parameter)] = False
        self._noted[id(parameter)] = 0.0

    def unscaled(self, parameters: Sequence[torch.Tensor]) -> None:
        """The gradients of these were divided by the loss scale."""
        for parameter in parameters:
            self._scaled.pop(id(parameter), None)
        self.note(parameters)

    # clips

    def clip(self, places: Sequence[str], params: Sequence[torch.Tensor], max_norm: float, norm_type: float) -> None:
        """Remember a clip by its line, and by the lines it was called from.

        One line may clip parameter by parameter, each on its own.
        """
        self.train(params)
        seen = ClipSeen(tuple(places), tuple(self.key(p) for p in params), max_norm, norm_type)
        self._know_clip(seen)
        if seen not in self.met and len(self.met) < MAX_CLIPS:
            self.met.append(seen)

    def _know_clip(self, clip: ClipSeen) -> None:
        for place in clip.places:
            self._clips.setdefault(place, {})[clip.keys] = clip.norm_type

    def clipped(self, params: Sequence[torch.Tensor], before: Mapping[int, float]) -> None:
        """After a clip, with the unscaled norms that :meth:`sizes` gave before it."""
        for parameter in params:
            old = before.get(id(parameter), 0.0)
            if self._plain(parameter) < REDUCED * old:
                self._ahead.setdefault(id(parameter), old)
        self.note(params)

    def sizes(self, params: Sequence[torch.Tensor]) -> Dict[int, float]:
        """The unscaled norm of each gradient."""
        return {id(p): self._plain(p) for p in params}

    def norms(self, own: Sequence[torch.Tensor]) -> Tuple[Dict[str, float], Dict[str, float]]:
        """Norm over each clip's parameters that ``own`` holds too, by the clip's line: as it is, and unscaled.

        Where one line clipped several sets, the largest of their norms.
        """
        mine = {id(p) for p in own}
        raw: Dict[str, float] = {}
        plain: Dict[str, float] = {}
        for place, clips in self._clips.items():
            for keys, norm_type in clips.items():
                common = [self._params[k] for k in keys if k in self._params and id(self._params[k]) in mine]
                if common:
                    size = norm(common, norm_type)
                    raw[place] = max(raw.get(place, 0.0), size)
                    plain[place] = max(plain.get(place, 0.0), size / self.scale_of(common))
        return raw, plain

    # steps

    def at_step(self, optimizer: str, own: Sequence[torch.Tensor]) -> Dict[str, object]:
        """What a step of ``optimizer`` meets, apart from norms."""
        since = self._passes[self._seen_passes.get(optimizer, 0) :]
        mine = {id(p) for p in own}
        parts = [(place, [size for key, size in one.items() if key in mine]) for place, one in since]
        parts = [(place, part) for place, part in parts if part]
        kept = [max(self._ahead.get(id(p), 0.0), self._plain(p)) for p in own if p.grad is not None]
        return {
            "contributions": len(parts),
            "places": len({place for place, _ in parts}),
            "accumulated": sum(math.hypot(*part) for _, part in parts),
            "kept": math.hypot(*kept),
            "by_hand": any(id(p) in self._by_hand for p in own),
        }

    def used(self, optimizer: str, own: Sequence[torch.Tensor]) -> None:
        """A step of ``optimizer`` consumed these gradients."""
        self._seen_passes[optimizer] = len(self._passes)
        for parameter in own:
            self._fresh[id(parameter)] = False
            self._by_hand.discard(id(parameter))
            size = self._plain(parameter)
            if size:
                self._stale[id(parameter)] = size

    # the backward pass

    def snapshot(self) -> Dict[int, Before]:
        """The gradients before a backward pass; copies only where they may have to be told apart."""
        held = [p for p in self.known if p.grad is not None]
        copies = bool(self.limits) or sum(p.numel() for p in held) <= COPY_LIMIT
        result: Dict[int, Before] = {}
        for parameter in held:
            grad = parameter.grad
            if grad is not None:
                copy = grad.detach().clone() if copies else None
                size = norm([parameter]) if id(parameter) in self._stale else 0.0
                result[id(parameter)] = Before(grad, grad._version, size, copy)
        return result

    def after_backward(self, before: Mapping[int, Before], scale: Optional[float], place: Tuple[object, ...]) -> Pass:
        """Mark what a backward reached; scale its contribution to ``factor`` times the limits, or repeat the first.

        Scaling the contribution is scaling the cotangent: backward is linear in it.
        """
        result = Pass()
        for parameter in self.known:
            old, grad = before.get(id(parameter)), parameter.grad
            if grad is not None and (old is None or old.tensor is not grad or old.version != grad._version):
                result.reached.append(parameter)
        result.stale = math.hypot(*(self._stale_part(p, before.get(id(p))) for p in result.reached))
        parts = self._parts(result.reached, before)
        if self.repeat:
            self._repeat(result.reached, before, parts, place)
        else:
            result.factor = self._scale_up(result.reached, parts, scale or 1.0)
        sizes = {key: norm_of([part], 2.0) * result.factor / (scale or 1.0) for key, part in parts.items()}
        result.contributed = math.hypot(*sizes.values()) if len(parts) == len(result.reached) else None
        self._passes.append((place, {id(p): sizes.get(id(p), 0.0) for p in result.reached}))
        for parameter in result.reached:
            self._fresh[id(parameter)] = True
            self._ahead.pop(id(parameter), None)
        self.note(result.reached)
        if scale is not None:
            self._scaled.update({id(p): (scale, self._noted[id(p)]) for p in result.reached})
        return result

    def _stale_part(self, parameter: torch.Tensor, old: Optional[Before]) -> float:
        stale = self._stale.get(id(parameter), 0.0)
        if old is None or not old.size or not stale:
            self._stale.pop(id(parameter), None)
            return 0.0
        if not self._fresh.get(id(parameter), False):
            # nothing was added since the step: what is there now counts, also if a clip changed it after the step
            stale = self._stale[id(parameter)] = old.size / self._scaled.get(id(parameter), (1.0, 0.0))[0]
        return stale

    def _parts(self, reached: Sequence[torch.Tensor], before: Mapping[int, Before]) -> Dict[int, torch.Tensor]:
        """What was added to each gradient; without those that cannot be told from what was there."""
        parts: Dict[int, torch.Tensor] = {}
        for parameter in reached:
            old, grad = before.get(id(parameter)), parameter.grad
            if grad is None:
                continue
            if old is None:
                parts[id(parameter)] = grad.detach()
            elif old.copy is not None:
                parts[id(parameter)] = grad.detach() - old.copy
        return parts

    def _scale_up(self, reached: Sequence[torch.Tensor], parts: Dict[int, torch.Tensor], scale: float) -> float:
        factor = 1.0
        for limit in self.limits:
            clipped = [self._params[k] for k in limit.keys if k in self._params]
            here = [parts[id(p)] for p in clipped if id(p) in parts]
            size = norm_of(here, limit.norm_type) / scale
            if 0.0 < size < self.factor * limit.max_norm:
                factor = max(factor, self.factor * limit.max_norm / size)
        if factor > 1.0:
            with torch.no_grad():
                for parameter in reached:
                    if parameter.grad is not None and id(parameter) in parts:
                        part = parts[id(parameter)] = parts[id(parameter)].clone()
                        parameter.grad.add_(part, alpha=factor - 1.0)
        return factor

    def _repeat(
        self,
        reached: Sequence[torch.Tensor],
        before: Mapping[int, Before],
        parts: Dict[int, torch.Tensor],
        place: Tuple[object, ...],
    ) -> None:
        """One batch: a backward from the same place that reaches the same parameters adds what the first one added."""
        where = (*place, *(id(p) for p in reached))
        first = self._first.get(where)
        if first is None or not norm_of(list(first.values()), 2.0):
            self._first[where] = {key: part.clone() for key, part in parts.items()}
            return
        with torch.no_grad():
            for parameter in reached:
                part, old, grad = first.get(id(parameter)), before.get(id(parameter)), parameter.grad
                if part is None or id(parameter) not in parts or grad is None or grad.is_sparse or grad.requires_grad:
                    continue
                parts[id(parameter)] = part
                grad.copy_(part if old is None or old.copy is None else old.copy + part)


def norm_of(tensors: Sequence[torch.Tensor], norm_type: float) -> float:
    """The total norm of several tensors taken as one vector."""
    if not tensors:
        return 0.0
    with torch.no_grad():
        parts = torch.stack([_size(t.detach(), norm_type) for t in tensors])
        return float(torch.linalg.vector_norm(parts, norm_type))


def _size(tensor: torch.Tensor, norm_type: float) -> torch.Tensor:
    dense = tensor.to_dense()
    if not dense.numel():
        return torch.zeros((), dtype=torch.float64)
    if dense.is_complex():
        dense = torch.view_as_real(dense)
    size: torch.Tensor = torch.linalg.vector_norm(dense, norm_type, dtype=torch.float64)
    return size


def norm(parameters: Sequence[torch.Tensor], norm_type: float = 2.0) -> float:
    """The total norm of the gradients of ``parameters``; 0 where there are none."""
    return norm_of([p.grad for p in parameters if p.grad is not None], norm_type)
