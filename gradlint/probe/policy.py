"""Which interpreter the probe may run, and which sources are not worth running."""

from __future__ import annotations

import ast
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ASK_SECONDS = 20.0
"""How long an interpreter may take to say whether it has PyTorch."""
HOW_TO_GET_PROOFS = "install torch beside gradlint, or name an interpreter that has it with --python"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The interpreter for the worker and why it was taken; ``path`` is ``None`` where there is none."""

    path: str | None
    why: str


def choose_python(explicit: str | None, trusted_project_python: str | None, environ: Mapping[str, str]) -> Choice:
    """The first of: ``--python``, the trusted project's, the running one, ``$VIRTUAL_ENV``, ``$CONDA_PREFIX``.

    The first two are taken as they are (the worker says if they lack PyTorch); the others only if PyTorch is
    installed there. ``trusted_project_python`` is the caller's to withhold without ``--trust-project``.
    Imports nothing.
    """
    for name, origin in ((explicit, "--python"), (trusted_project_python, "the project's configuration")):
        if name is not None:
            path = shutil.which(name, path=environ.get("PATH"))
            return Choice(path, origin) if path else Choice(None, f"{origin}: no interpreter at {name}")
    if _running_has_torch():
        return Choice(sys.executable, "the running interpreter")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environ.get(variable)
        if prefix and _prefix_has_torch(Path(prefix)):
            return Choice(str(Path(prefix) / "bin" / "python"), f"${variable}")
    return Choice(None, HOW_TO_GET_PROOFS)


def _running_has_torch() -> bool:
    """Looks along the path like an import, but not in the current folder: a project may have a ``torch/`` there."""
    here = Path.cwd()
    folders = (Path(entry) for entry in sys.path if entry)
    return bool(sys.executable) and any(_holds_torch(folder) for folder in folders if folder != here)


def _prefix_has_torch(prefix: Path) -> bool:
    python = prefix / "bin" / "python"
    if not python.is_file():
        return False
    return any(_holds_torch(folder) for folder in prefix.glob("lib/python3*/site-packages")) or _says_it_has(python)


def _holds_torch(folder: Path) -> bool:
    return (folder / "torch" / "version.py").is_file()


def _says_it_has(python: Path) -> bool:
    """Ask the interpreter itself: its environment may build on another one's packages."""
    question = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    try:
        asked = subprocess.run(
            [str(python), "-I", "-c", question], timeout=ASK_SECONDS, capture_output=True, check=False, cwd=os.sep
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


HOSTILE = frozenset(
    {
        "os.system",
        "os.popen",
        "os.fork",
        "os.kill",
        "os.execv",
        "os.execve",
        "os.execvp",
        "os.execlp",
        "subprocess.run",
        "subprocess.call",
        "subprocess.check_call",
        "subprocess.check_output",
        "subprocess.Popen",
        "socket.socket",
        "socket.create_connection",
        "urllib.request.urlopen",
        "urllib.request.urlretrieve",
        "shutil.rmtree",
    }
)
"""Calls that the confinement refuses. Made unconditionally on import, they end every experiment with that file."""


def vet(modules: Iterable[Mapping[str, Any]]) -> str | None:
    """Why experiments with ``modules`` (``path`` and ``source`` each) cannot work; ``None`` where nothing speaks
    against them.

    This saves time and guards nothing: it sees a plain call in a top-level statement, under the name it was imported
    by. What stands in a function, a branch or a ``try`` may never run, or be caught.
    """
    for module in modules:
        source = module.get("source", "")
        if not any(name.rpartition(".")[2] in source for name in HOSTILE):
            continue
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            continue
        found = _hostile_call(tree)
        if found is not None:
            return f"{module.get('path', '')}:{found[0]}: {found[1]} on import"
    return None


def _hostile_call(tree: ast.Module) -> tuple[int, str] | None:
    names: dict[str, str] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            names.update({a.asname or a.name.partition(".")[0]: a.name if a.asname else "" for a in statement.names})
        elif isinstance(statement, ast.ImportFrom):
            names.update({a.asname or a.name: f"{statement.module}.{a.name}" for a in statement.names})
        elif isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Call):
            name = _dotted(statement.value.func, names)
            if name in HOSTILE:
                return statement.lineno, name
    return None


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    """``sp.run`` after ``import subprocess as sp`` is ``subprocess.run``; ``""`` for what is not a plain name."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id] or node.id
    return ""
