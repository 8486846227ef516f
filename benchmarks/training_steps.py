"""How many training steps gradlint recognises in real code, and where the state of the gradients becomes unknown.

    python benchmarks/training_steps.py FOLDER...

A step is one optimizer step (a place in a file) that shares an iteration with a backward. It is unknown where, on
some path to it, a call that cannot be read may have touched the gradients. The names of these calls are counted:
that list is the next work.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator

from gradlint.analysis import Analyst
from gradlint.facts.index import ProjectIndex
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_states import phases, turn_of
from gradlint.registry import load

SHOWN = 25


def main(folders: list[str]) -> None:
    """Print one line for each folder, the total, and the names behind the unknown states."""
    total: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    for folder in folders:
        counts = Counter[str]()
        for facts in steps_of(folder):
            for kind, names in steps_in(facts):
                counts[kind] += 1
                causes.update(names)
        total.update(counts)
        if counts:
            name = os.path.basename(folder.rstrip("/"))
            print(f"{name}: {counts['known'] + counts['unknown']} steps, {counts['unknown']} unknown")
    print(f"total: {total['known'] + total['unknown']} steps, {total['unknown']} unknown")
    for name, count in causes.most_common(SHOWN):
        print(f"  {count:4} {name}")


def steps_of(folder: str) -> Iterator[StepFacts]:
    """The training steps of every file below a folder."""
    analyst = Analyst(ProjectIndex([folder]), load(), frozenset({"GL101"}), {}, probing=False)
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            path = os.path.join(where, name)
            file = analyst.index.parse(path) if name.endswith(".py") else None
            if file is not None:
                facts = analyst.facts(path, file.text, file.tree, [])
                if facts.steps is not None:
                    yield facts.steps


def steps_in(facts: StepFacts) -> Iterator[tuple[str, set[str]]]:
    """Each step of a file once: whether what its gradients are is known, and the calls that leave it open."""
    seen: dict[tuple[str, int, int], tuple[str, set[str]]] = {}
    for region in facts.regions:
        for index, step in region.of_kind("step"):
            found = _state(facts, region, index, step)
            if found is not None:
                seen[(step.path, step.location.line, step.location.column)] = found
    yield from seen.values()


def _state(facts: StepFacts, region: Region, index: int, step: Event) -> tuple[str, set[str]] | None:
    turn = turn_of(region, index)
    if turn is None:
        return None
    if "unknown" not in phases(facts, turn.graph, step, "none").get(index, frozenset()):
        return "known", set()
    doubted = {e.name.rsplit(".", 1)[-1] for _, e in turn.events("unknown") if e.doubt == "strong"}
    return "unknown", doubted or {"(a clearing of parameters that cannot be told apart)"}


if __name__ == "__main__":
    main(sys.argv[1:])
