"""Keep PyTorch's compiler out of experiments: its import alone costs more CPU than most of them do.

``torch.compile`` gives back what it gets. ``Optimizer.add_param_group`` and ``Optimizer.step`` import
``torch._dynamo`` (torch 2.4 to 2.13: ``torch/_compile.py``, ``torch/optim/optimizer.py``) only to tell a
compiler, which is not at work here, to look away: 1.5 s for the first optimizer of a process. A stand-in answers
these calls. Whoever asks ``torch._dynamo`` for anything else gets the real package, imported then.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, Callable, Dict, Optional, Sequence


def _as_it_is(fn: Optional[Callable[..., Any]] = None, *args: Any, **options: Any) -> Any:
    """A decorator, with or without arguments, that decorates nothing."""
    return fn if fn is not None else _as_it_is


_NAME = "torch._dynamo"
_ANSWERS: Dict[str, Dict[str, Callable[..., Any]]] = {
    _NAME: {"graph_break": lambda *args, **kwargs: None, "disable": _as_it_is, "allow_in_graph": _as_it_is},
    _NAME + ".utils": {"is_compile_supported": lambda device: False},
}
"""What is asked without a compiler at work: by every optimizer step, on ``import torchvision``, ``import timm``."""


def install() -> None:
    """Take the compiler's place. Call once, right after ``import torch``."""
    if _NAME in sys.modules:
        return
    torch: Any = importlib.import_module("torch")
    _spare_decorated_functions(torch)
    for name, answers in _ANSWERS.items():
        sys.modules[name] = _StandIn(name, answers)
    torch._dynamo = sys.modules[_NAME]
    sys.meta_path.insert(0, _SubmoduleFinder())
    torch.compile = _as_it_is
    torch.nn.Module.compile = _compile_nothing


def _compile_nothing(self: Any, *args: Any, **options: Any) -> None:
    """``model.compile()``"""


def _spare_decorated_functions(torch: Any) -> None:
    """Let functions under torch's ``_disable_dynamo`` call what they wrap, those made from now on and those made."""
    decorator = torch._compile._disable_dynamo
    inner = decorator(lambda: None).__code__
    for item in gc.get_objects():
        if type(item) is types.FunctionType and item.__code__ is inner:
            wrapped = item.__wrapped__  # type: ignore[attr-defined]
            wrapped.__dynamo_disable = wrapped
    torch._compile._disable_dynamo = torch._disable_dynamo = _as_it_is


class _StandIn(types.ModuleType):
    """Gives the answers it knows; becomes the real module when anything else is wanted."""

    def __init__(self, name: str, answers: Dict[str, Callable[..., Any]]) -> None:
        super().__init__(name)
        vars(self).update(answers)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (name, self.__name__) != ("__path__", _NAME):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _SubmoduleFinder(MetaPathFinder):
    """``import torch._dynamo.config`` with the stand-in still there: import the package, hand out what it loaded."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Optional[types.ModuleType] = None
    ) -> Optional[ModuleSpec]:
        if not fullname.startswith(_NAME + ".") or fullname not in sys.modules:
            return None
        return ModuleSpec(fullname, _Loaded(sys.modules[fullname]))


class _Loaded(Loader):
    def __init__(self, module: types.ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self.module

    def exec_module(self, module: types.ModuleType) -> None:
        """It has run already."""


def _real(name: str) -> types.ModuleType:
    torch: Any = importlib.import_module("torch")
    for stand_in in _ANSWERS:
        if isinstance(sys.modules.get(stand_in), _StandIn):
            del sys.modules[stand_in]
    torch._dynamo = importlib.import_module(_NAME)
    return importlib.import_module(name)
