"""Speed as ratios, each pair measured side by side in one run.

    python benchmarks/speed.py FOLDER

* ``gradlint --help`` against ``python -c "import click"``;
* a static run (``--no-probe``) over FOLDER against ``libcst.parse_module`` over the same files, one process each;
* one probed file against ``python -c "import torch"``;
* peak memory of the static run.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5

PARSE = """
import sys, pathlib, libcst
for p in pathlib.Path(sys.argv[1]).rglob("*.py"):
    data = p.read_bytes()
    if b"torch" in data:
        try:
            libcst.parse_module(data)
        except Exception:
            pass
"""

PROGRAM = """
import torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(10):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.zero_grad()
    model(torch.randn(8, 4)).pow(2).mean().backward()
    optimizer.step()
"""


def seconds(command: list[str]) -> float:
    """Wall clock seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def pair(name: str, ours: list[str], theirs: list[str], repeats: int = REPEATS) -> float:
    """Both commands in turn; the median of the ratios."""
    seconds(ours), seconds(theirs)
    ratios, mine, other = [], [], []
    for _ in range(repeats):
        a, b = seconds(ours), seconds(theirs)
        mine.append(a)
        other.append(b)
        ratios.append(a / b)
    ratio = statistics.median(ratios)
    print(f"{name}: {statistics.median(mine):.2f} s against {statistics.median(other):.2f} s, ratio {ratio:.2f}")
    return ratio


def peak() -> float:
    """Peak memory of any process so far, in MiB; nothing has been probed yet when it is asked."""
    mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"peak memory of a static process: {mib:.0f} MiB")
    return mib


def main() -> None:
    """Measure and print."""
    folder = sys.argv[1]
    python, gradlint = sys.executable, [sys.executable, "-m", "gradlint"]
    with tempfile.TemporaryDirectory() as scratch:
        script, program = Path(scratch, "parse.py"), Path(scratch, "train.py")
        script.write_text(PARSE)
        program.write_text(PROGRAM)
        results = {
            "help": pair("--help / import click", [*gradlint, "--help"], [python, "-c", "import click"]),
            "static": pair(
                "static run / libcst.parse_module",
                [*gradlint, folder, "--no-probe", "--no-cache", "--jobs", "1"],
                [python, str(script), folder],
                repeats=1,
            ),
            "static_mib": peak(),
            "probe": pair(
                "one probed finding / import torch",
                [*gradlint, os.fspath(program), "--no-cache"],
                [python, "-c", "import torch"],
            ),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
