"""Whether the same input gives the same verdicts, run after run, idle and under load.

    python benchmarks/stability.py PATH... [--runs 20]

Runs ``gradlint PATH... --show-refuted --no-cache`` so many times while nothing else is asked of the machine, and as
many times beside one busy process per processor, and compares every verdict, reason and message with the first run's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from typing import Any


def busy() -> None:
    """Use a processor."""
    while True:
        sum(range(10_000))


def verdicts(paths: list[str]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What one run says of each place."""
    command = [sys.executable, "-m", "gradlint", "check", *paths, "--show-refuted", "--no-cache", "--format", "json"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = json.loads(output)["findings"]
    return {(f["path"], f["line"], f["code"]): (f["verdict"], f["reason"], f["message"]) for f in found}


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    first = verdicts(options.paths)
    print(f"{len(first)} verdicts")
    for load in (False, True):
        workers = (
            [multiprocessing.Process(target=busy, daemon=True) for _ in range(os.cpu_count() or 1)] if load else []
        )
        for worker in workers:
            worker.start()
        same = 0
        for _ in range(options.runs):
            again = verdicts(options.paths)
            same += again == first
            for key in first.keys() | again.keys():
                if first.get(key) != again.get(key):
                    print("differs:", key, first.get(key), again.get(key))
        for worker in workers:
            worker.terminate()
        print(f"{'under load' if load else 'idle'}: {same} of {options.runs} runs the same")


if __name__ == "__main__":
    main()
