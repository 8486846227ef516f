"""What a model's code gets for a name that could not be imported.

Names that only decorate, annotate or log do no harm and are answered. A name that would have to compute something
ends the experiment: a model with a made-up part is not the user's model.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

from modules import SlicedModules
from probe_errors import ProbeError
from torch import nn

_TALK = frozenset(("debug", "info", "warning", "warn", "error", "log", "print", "info_once", "warning_once"))
_MODULE_BASES = frozenset({"LightningModule"})
"""``torch.nn.Module`` with a trainer's methods: as far as ``forward`` goes, a plain module."""
_MIXINS = frozenset({"PyTorchModelHubMixin", "ModelHubMixin"})


class Missing:
    """Makes the placeholders of one experiment, and keeps what was assumed for them."""

    def __init__(self) -> None:
        self.assumed: Dict[str, Any] = {}
        self.slices: SlicedModules

    def __call__(self, module: str, name: str, why: str) -> Any:
        """The ``missing`` callback of :class:`modules.SlicedModules`."""
        return Placeholder(f"{module}.{name}" if name else module, why, self)


class _TrainerModule(nn.Module):
    """Stands in for ``LightningModule``: the trainer's side does nothing."""

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Keep the constructor's arguments under ``self.hparams``, as far as they were given by name."""
        import sys
        import types

        frame = sys._getframe(1)
        values = {k: v for k, v in frame.f_locals.items() if k not in ("self", "__class__")}
        self.__dict__["hparams"] = types.SimpleNamespace(**values)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    log_dict = log


class _Mixin:
    """An empty base."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__()


class Placeholder:
    """A name that is not there. Harmless while modules load, an error when a model would use it."""

    def __init__(self, path: str, why: str, maker: Missing) -> None:
        self.__dict__.update(_path=path, _why=why, _maker=maker)

    def _fail(self) -> ProbeError:
        return ProbeError("not-built", f"the model uses {self._path}, which cannot be imported ({self._why})")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(f"{self._path}.{name}", self._why, self._maker)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._path.rpartition(".")[2] in _TALK:
            return None
        if len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]  # a decorator
        if not self._maker.slices.loading:
            raise self._fail()
        return Placeholder(f"{self._path}(...)", self._why, self._maker)

    def __mro_entries__(self, bases: Tuple[Any, ...]) -> Tuple[type, ...]:
        name = self._path.rpartition(".")[2]
        if name in _MODULE_BASES:
            self._maker.assumed[self._path] = "torch.nn.Module"
            return (_TrainerModule,)
        if name in _MIXINS:
            self._maker.assumed[self._path] = "nothing"
            return (_Mixin,)
        fail = self._fail

        def refuse(cls: type, *args: Any, **kwargs: Any) -> Any:
            raise fail()

        return (type("MissingBase", (_Mixin,), {"__new__": refuse}),)

    def __getitem__(self, key: Any) -> Any:
        if not self._maker.slices.loading:
            raise self._fail()
        return self  # an annotation

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __instancecheck__(self, instance: Any) -> bool:
        return False

    def __iter__(self) -> Any:
        raise self._fail()

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Any:
        raise self._fail()

    def __exit__(self, *error: object) -> None:
        """Never entered."""
