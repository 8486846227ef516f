"""What ghosts ask of the run they are part of."""

from __future__ import annotations

from types import FrameType
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import torch

if TYPE_CHECKING:
    from ghost import Ghost

MISSING = object()
"""Nothing is known about a name (``None`` is a value)."""


class Gate:
    """Whether a framework lets the optimizers of a process step: Accelerate's gradient state."""

    def __init__(self) -> None:
        self.open = True


class World:
    """What ghosts ask of the run they are part of. The default knows nothing."""

    def __init__(self) -> None:
        self.gate = Gate()

    def truth(self, ghost: Ghost, frame: FrameType) -> bool:
        """The truth value of ``ghost``, asked by ``frame``."""
        return True

    def modulus(self, ghost: Ghost) -> int:
        """The number an unknown ``k`` stands for in ``i % k``."""
        return 1

    def count(self, ghost: Ghost) -> Optional[int]:
        """The number an unknown stands for where it counts the micro-batches of a step; None where it does not."""
        return None

    def number(self, ghost: Ghost) -> float:
        """The number an unknown stands for where real arithmetic needs one."""
        return 1.0

    def value_of(self, name: str) -> Any:
        """What the project says about the expression ``name``, or :data:`MISSING`."""
        return MISSING

    def call(self, ghost: Ghost, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """The result of calling ``ghost``."""
        return ghost

    def progress(self) -> int:
        """How many training events were recorded so far."""
        return 0

    def bases(self, name: str) -> Tuple[type, ...]:
        """The real classes that stand for the unknown base class ``name``."""
        return (object,)

    def site(self) -> str:
        """The call in the program's text that is being made: the same in every iteration."""
        return ""

    def backward(self, tensor: torch.Tensor) -> None:
        """Run the backward pass of a ghost's hidden scalar."""
        tensor.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    def run_backward(self, loss: Any, divisor: int = 1, scaler: Optional[torch.amp.GradScaler] = None) -> None:
        """Run the backward pass of whatever carries the gradient, divided and scaled as a framework does it."""

    def layer(self, ghost: Ghost, name: str, surely: bool) -> Any:
        """What a module holds under ``name`` that was given an unknown."""
        return ghost

    def asked(self, value: Any) -> bool:
        """The truth of a value that a framework asks for."""
        return bool(value)

    def first_backward(self) -> None:
        """A backward begins."""

    def stand_in_loss(self, name: str = "") -> torch.Tensor:
        """A loss that depends on what is trained."""
        return torch.zeros((), requires_grad=True)

    def window(self, ghost: Ghost) -> int:
        """The micro-batches of a step, where a framework was given an unknown number of them."""
        return 1

    def prepared(self, ghost: Ghost) -> Any:
        """The model or optimizer that an unknown is, if it is one."""
        return ghost


class _Current:
    """Holds the world of the run in progress."""

    world: World = World()


def enter(world: World) -> None:
    """Make ``world`` the one that ghosts ask."""
    _Current.world = world


def world() -> World:
    """The world of the run in progress."""
    return _Current.world
