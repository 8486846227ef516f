"""Recall on real training code: faults are planted in files that are right, and gradlint is asked to find them.

    python benchmarks/planted.py OUT FOLDER...      writes the programs and truth.json to OUT
    python benchmarks/planted.py --score OUT        lints OUT with the probe and compares

A program is one file of a folder with one statement moved or deleted, so that its order is wrong by construction if
the file was right: the clip ahead of the backward (GL101) or behind the step (GL102), ``unscale_`` deleted (GL103),
the only ``zero_grad`` deleted (GL104), ``zero_grad`` moved to directly ahead of the step (GL105). The other files of
its project are not there, so that what it imports from them cannot be read. Of one file at most two programs of a
kind are made.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST = 2
NEAR = 6
"""Lines that a finding may be away from the planted place: the statement may be split over several."""
BLOCK = 15
"""The same for a missing ``zero_grad``, which may be told of at the backward or at the step."""

Planted = tuple[str, int, str]
"""A code, the line of the fault, and the text of the program."""


def kinds(statement: ast.stmt) -> frozenset[str]:
    """What a statement does to gradients, by the names of its calls."""
    found: set[str] = set()
    for call in (n for n in ast.walk(statement) if isinstance(n, ast.Call)):
        written = ast.unparse(call.func)
        last = written.rsplit(".", 1)[-1]
        if last in {"clip_grad_norm_", "clip_grad_value_", "clip_grad_norm"}:
            found.add("clip")
        elif last in {"backward", "manual_backward"}:
            found.add("backward")
        elif last in {"unscale_", "zero_grad"}:
            found.add(last)
        elif last == "step" and re.search(r"opt(im|$|_|\.)|scaler", written, re.I) and "sched" not in written.lower():
            found.add("step")
    return frozenset(found)


def blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """All lists of statements."""
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            body = getattr(node, name, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                yield body


def moved(lines: Sequence[str], what: ast.stmt, where: ast.stmt, ahead: bool) -> tuple[list[str], int]:
    """The lines with one statement ahead of or behind another, and the line where it is then."""
    begin, end = what.lineno - 1, what.end_lineno or what.lineno
    at = where.lineno - 1 if ahead else (where.end_lineno or where.lineno)
    block = list(lines[begin:end])
    call = next((n for n, text in enumerate(block) if re.search(r"clip_grad|zero_grad", text)), 0)
    if at <= begin:
        return [*lines[:at], *block, *lines[at:begin], *lines[end:]], at + 1 + call
    return [*lines[:begin], *lines[end:at], *block, *lines[at:]], at - len(block) + 1 + call


def planted(text: str) -> Iterator[Planted]:
    """Every fault that can be planted in one file."""
    tree, lines = ast.parse(text), text.split("\n")
    for body in blocks(tree):
        does = [kinds(s) for s in body]

        def only(*names: str, does: list[frozenset[str]] = does) -> int | None:
            places = [n for n, found in enumerate(does) if found and found <= set(names) and names[0] in found]
            return places[0] if len(places) == 1 else None

        clip, backward, step, clear = only("clip", "unscale_"), only("backward"), only("step"), only("zero_grad")
        if backward is not None and step is not None and backward < step:
            if clip is not None and backward < clip < step:
                if "unscale_" not in does[clip]:
                    new, line = moved(lines, body[clip], body[backward], ahead=True)
                    yield "GL101", line, "\n".join(new)
                new, line = moved(lines, body[clip], body[step], ahead=False)
                yield "GL102", line, "\n".join(new)
            if clear is not None and not backward < clear < step:
                new, line = moved(lines, body[clear], body[step], ahead=True)
                yield "GL105", line, "\n".join(new)
        unscale = only("unscale_")
        if unscale is not None and clip is not None and unscale < clip and isinstance(body[unscale], ast.Expr):
            first, last = body[unscale].lineno - 1, body[unscale].end_lineno or body[unscale].lineno
            yield "GL103", body[clip].lineno - (last - first), "\n".join([*lines[:first], *lines[last:]])
    yield from _without_clearing(tree, lines)


def _without_clearing(tree: ast.Module, lines: list[str]) -> Iterator[Planted]:
    if "\n".join(lines).count("zero_grad") != 1:
        return
    for function in (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))):
        inside = [s for s in ast.walk(function) if isinstance(s, ast.Expr)]
        clears = [s for s in inside if kinds(s) == {"zero_grad"}]
        steps = [s for s in inside if kinds(s) == {"step"}]
        loops = [n for n in ast.walk(function) if isinstance(n, (ast.For, ast.While))]
        looped = any(s is clear for loop in loops for s in ast.walk(loop) for clear in clears)
        if len(clears) == len(steps) == 1 and looped and sum(kinds(s) == {"backward"} for s in inside) == 1:
            first, last = clears[0].lineno - 1, clears[0].end_lineno or clears[0].lineno
            indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
            step = steps[0].lineno - (last - first - 1 if clears[0].lineno < steps[0].lineno else 0)
            yield "GL104", step, "\n".join([*lines[:first], f"{indent}pass", *lines[last:]])


def plant(out: Path, folders: Sequence[str]) -> None:
    """Write the programs and what is wrong with them."""
    truth: dict[str, dict[str, object]] = {}
    seen: set[str] = set()
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for folder in folders for p in Path(folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        mark = hashlib.sha256(text.encode()).hexdigest()
        if mark in seen or "backward" not in text or ".step(" not in text:
            continue
        seen.add(mark)
        try:
            found = list(planted(text))
        except (SyntaxError, RecursionError):
            continue
        made: Counter[str] = Counter()
        for code, line, new in found:
            made[code] += 1
            if made[code] > MOST or not _parses(new):
                continue
            name = f"p{len(truth):04d}_{code}_{path.stem[:30]}.py"
            (out / name).write_text(new, encoding="utf-8")
            truth[name] = {"code": code, "line": line}
    (out / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    print(f"{len(truth)} programs:", dict(Counter(str(t["code"]) for t in truth.values())))


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def score(out: Path) -> None:
    """Lint the programs; what was found, of each kind, and how much of it was confirmed."""
    truth = json.loads((out / "truth.json").read_text(encoding="utf-8"))
    command = ["gradlint", "check", str(out), "--select", "GL1", "--no-cache", "--format", "json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    there: Counter[str] = Counter(t["code"] for t in truth.values())
    shown: Counter[str] = Counter()
    confirmed: Counter[str] = Counter()
    for name, expected in truth.items():
        code, line = expected["code"], expected["line"]
        room = BLOCK if code == "GL104" else NEAR
        hits = [
            f["verdict"]
            for f in report["findings"]
            if Path(f["path"]).name == name and f["code"] == code and abs(f["line"] - line) <= room
        ]
        shown[code] += bool(hits)
        confirmed[code] += "confirmed" in hits
        if not hits:
            print(f"missed: {name}:{line} {code}")
    for code in sorted(there):
        print(f"{code}: {there[code]} planted, {shown[code]} found, {confirmed[code]} of them confirmed")
    every = sum(there.values())
    print(f"all: {every} planted, recall {sum(shown.values()) / every:.3f}, {sum(confirmed.values())} confirmed")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--score"]:
        score(Path(sys.argv[2]))
    else:
        plant(Path(sys.argv[1]), sys.argv[2:])
