"""Imports of sliced step code: slices, PyTorch, NumPy and the standard library are real, the rest is ghosts.

Training frameworks are not imported even where they are installed: their import alone costs seconds, and what
they do with gradients is stood in for (``step_frameworks``, ``step_calls``).
"""

from __future__ import annotations

import sys
from types import CodeType, ModuleType
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

from ghost import Ghost
from ghost_modules import GhostModule
from modules import SlicedModules
from step_frameworks import NAMES

REAL = frozenset({"torch", "numpy", "typing_extensions", "__future__"})
"""Packages outside the standard library that are imported for real."""

GHOSTLY = frozenset(
    {"torch.utils.tensorboard", "torch.distributed", "torch.profiler", "multiprocessing"}
    | {"subprocess", "socket", "threading", "signal", "atexit", "webbrowser", "tkinter", "readline", "pdb"}
)
"""Real packages that a replay must not wake up: they start processes, open connections or write files."""


def is_real(name: str) -> bool:
    """Whether ``import name`` means the installed module."""
    if any(name == g or name.startswith(g + ".") for g in GHOSTLY):
        return False
    root = name.partition(".")[0]
    return root in REAL or root in _standard_library()


def _standard_library() -> frozenset[str]:
    names = getattr(sys, "stdlib_module_names", None)  # Python 3.10
    if names is not None:
        return frozenset(names)
    import sysconfig
    from pathlib import Path

    folder = Path(sysconfig.get_paths()["stdlib"])
    return frozenset({p.stem for p in folder.iterdir() if p.suffix in ("", ".py")} | set(sys.builtin_module_names))


class StepModules(SlicedModules):
    """Sliced modules whose builtins hold the helpers of the rewritten code."""

    def __init__(
        self,
        modules: Sequence[Mapping[str, Any]],
        compile_slice: Callable[[str, str, str], CodeType],
        helpers: Mapping[str, Any],
        prepare: Callable[[ModuleType], None],
    ) -> None:
        super().__init__(modules, _missing, compile_slice)
        self._helpers = dict(helpers)
        self._prepare = prepare
        self._ghosts: Dict[str, GhostModule] = {}

    def _make(self, name: str) -> ModuleType:
        module = super()._make(name)
        module.__dict__["__builtins__"].update(self._helpers)
        self._prepare(module)
        return module

    def import_hook(
        self,
        name: str,
        globals: Optional[Mapping[str, Any]] = None,
        locals: Optional[Mapping[str, Any]] = None,
        fromlist: Optional[Sequence[str]] = None,
        level: int = 0,
    ) -> Any:
        """As the base class; what is neither sliced nor trusted to be harmless is a ghost module."""
        if not level and not self.holds(name) and any(not is_real(f"{name}.{item}") for item in fromlist or ()):
            return self._ghost(name)
        if level or self.holds(name) or is_real(name):
            return super().import_hook(name, globals, locals, fromlist, level)
        if name.startswith("torch.") and not fromlist:
            return sys.modules["torch"]  # "import torch.distributed" binds torch
        return self._ghost(name if fromlist else name.partition(".")[0])

    def _ghost(self, name: str) -> ModuleType:
        if name not in self._ghosts:
            self._ghosts[name] = made = GhostModule(name)
            vars(made).update(NAMES.get(name, {}))
        return self._ghosts[name]


def _missing(module: str, name: str, why: str) -> Any:
    return Ghost(f"{module}.{name}" if name else module)
