"""Run model requests as the zygote does: one process with torch, one fork for each request."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parents[1] / "gradlint" / "probe" / "worker"

SERVER = f"""
import json, os, sys
sys.path.insert(0, {str(WORKER)!r})
import torch
torch.set_num_threads(1)
import no_compiler
no_compiler.install()
import torch.fx
import measure_model
from probe_errors import ProbeError
for line in sys.stdin:
    if not os.fork():
        try:
            answer = measure_model.run(json.loads(line))
        except ProbeError as error:
            answer = {{"failed": error.reason, "detail": error.detail}}
        except BaseException as error:
            answer = {{"failed": "crash", "detail": repr(error)}}
        os.write(1, (json.dumps(answer) + "\\n").encode())
        os._exit(0)
    os.wait()
"""

HEADER = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"


class ModelLab:
    """A server for model requests; use as a context manager."""

    def __enter__(self) -> ModelLab:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(10)

    def run(
        self,
        source: str | Mapping[str, str],
        qualname: str,
        kind: str = "class",
        calls: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """The answer to one request. ``source``: one module's text, or several by name, the entry first."""
        sources = {"m": HEADER + textwrap.dedent(source)} if isinstance(source, str) else source
        packages = {name.rpartition(".")[0] for name in sources}
        modules = [
            {
                "name": name,
                "path": name.replace(".", "/") + ".py",
                "source": textwrap.dedent(text),
                "package": name if name in packages else name.rpartition(".")[0],
                "is_package": name in packages,
            }
            for name, text in sources.items()
        ]
        body = {
            "modules": modules,
            "entry": next(iter(sources)),
            "kind": kind,
            "qualname": qualname,
            "calls": list(calls),
            "inputs": [],
            "remedies": ["relu_he", "he", "xavier", "lecun", "batch_norm", "layer_norm"],
            "min_depth": 3,
            "optimizer": "none",
            "controls": {},
            **more,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(body) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer


def depths(answer: Mapping[str, Any]) -> list[int]:
    """How many layers each measured chain has."""
    assert "failed" not in answer, answer
    return [c["depth"] for c in answer["chains"]]


def written(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the only chain, as written."""
    assert "failed" not in answer, answer
    (chain,) = answer["chains"]
    result: dict[str, Any] = chain["written"]
    return result
