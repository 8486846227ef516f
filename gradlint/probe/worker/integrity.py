"""Whether the functions that a measurement rests on are still PyTorch's own after the user's code ran.

A program may replace ``torch.autograd.grad`` or ``Tensor.backward``, to trace or to hide something; either way what is
measured through them says nothing about the program. :func:`take` before the user's code, :meth:`Snapshot.verify` after
it. A measurement that installs recorders of its own takes its snapshot after that.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from typing import Dict, Iterable, Iterator, List

from probe_errors import ProbeError

TORCH = (
    "torch.autograd.grad",
    "torch.autograd.backward",
    "torch.Tensor.backward",
    "torch.Tensor.grad",
    "torch.Tensor.norm",
    "torch.Tensor.std",
    "torch.Tensor.item",
    "torch.Tensor.register_hook",
    "torch.norm",
    "torch.linalg.vector_norm",
    "torch.isfinite",
    "torch.randn",
    "torch.manual_seed",
    "torch.nn.Module.__call__",
    "torch.nn.Module._call_impl",
    "torch.nn.Module.register_forward_hook",
    "torch.nn.Module.register_forward_pre_hook",
    "torch.nn.Module.parameters",
    "torch.nn.Module.named_parameters",
    "torch.nn.utils.clip_grad_norm_",
    "torch.nn.utils.clip_grad_value_",
    "torch.optim.Optimizer.zero_grad",
    "torch.optim.SGD.step",
    "torch.optim.Adam.step",
    "torch.optim.AdamW.step",
)
"""What the measurements call. Names that a version of PyTorch lacks are passed over."""

REPORTING = (
    "json.JSONEncoder.encode",
    "json.JSONEncoder.iterencode",
    "json.encoder.c_make_encoder",
    "os.write",
    "math.sqrt",
    "math.isfinite",
)
"""What brings numbers out of the child."""

BUILTINS = frozenset(
    {"abs", "all", "any", "dict", "float", "getattr", "int", "isinstance", "len", "list", "max", "min"}
)
"""Not ``print``: programs for many GPUs replace it and mean no harm."""


class Snapshot:
    """The objects that a set of dotted names stood for at one moment."""

    def __init__(self, names: Iterable[str]) -> None:
        self._objects: Dict[str, object] = {}
        for name in names:
            found = _resolve(name)
            if found is not None:
                self._objects[name] = found

    def changed(self) -> List[str]:
        """The names that stand for something else now."""
        return [name for name, was in self._objects.items() if _resolve(name) is not was]

    def verify(self) -> None:
        """Raise :class:`ProbeError` (``tampered``) where :meth:`changed` is not empty."""
        changed = self.changed()
        if changed:
            raise tampered(changed)


def take(names: Iterable[str] = TORCH) -> Snapshot:
    """Remember what ``names`` stand for now."""
    return Snapshot(names)


class Builtins:
    """The built-in functions at one moment, to be put back before the worker's own code goes on."""

    def __init__(self) -> None:
        self._namespace = vars(builtins)
        self._saved = dict(self._namespace)

    def restore(self) -> List[str]:
        """Put them back; returns which of ``BUILTINS`` had been replaced."""
        was, now = self._saved, self._namespace  # no built-in function may be called before the next line has run
        replaced = [name for name in BUILTINS if now.get(name) is not was[name]]
        now.update(was)
        return replaced


@contextlib.contextmanager
def guarded(names: Iterable[str] = TORCH) -> Iterator[Snapshot]:
    """Run a block of user's code; raise ``tampered`` at its end if it replaced one of ``names``."""
    snapshot = Snapshot(names)
    yield snapshot
    snapshot.verify()


def tampered(names: Iterable[str]) -> ProbeError:
    """The error that says that the code under test replaced ``names``."""
    return ProbeError("tampered", f"the code replaced {', '.join(sorted(names))}")


def _resolve(name: str) -> object:
    """The object of a dotted name, starting at an imported module; ``None`` where there is none."""
    first, *rest = name.split(".")
    found: object = sys.modules.get(first)
    for part in rest:
        found = getattr(found, part, None)
    return found
