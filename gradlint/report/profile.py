"""The gradient profile of one model: a table with bars for people, a document for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradlint.facts.chain_verdict import NUMBERS, WHOLE
from gradlint.facts.vanishing import Optimizer, cured, fired, healthy, number
from gradlint.report.json import VERSION, plain
from gradlint.report.style import Style, visible
from gradlint.report.words import number as shown
from gradlint.report.words import remedy_name

WIDTH = 24
PER_DECADE = 4
"""Blocks of a bar for a factor of ten: six decades fit."""


def as_json(told: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The document, with a line end."""
    chains = [c for c in data["chains"] if c.get("index") != WHOLE]
    kept = ("first", "last", "depth", "activations", "norms", "written", "after")
    document = {
        "version": VERSION,
        **told,
        "arguments": data["args"],
        "assumed": data["assumed"],
        "input_shapes": data["input_shapes"],
        "parameters": data["parameters"],
        "trace": data["trace"],
        "seeds": data["profile_seeds"],
        "layers": data["profile"],
        "chains": [{key: c[key] for key in kept} for c in chains],
    }
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def as_text(told: Mapping[str, Any], data: Mapping[str, Any], style: Style, block: str) -> str:
    """A line for each layer, its bar as long as the logarithm of its gradient, and a line for each chain."""
    shapes = ", ".join("(" + ", ".join(map(str, s)) + ")" for s in data["input_shapes"]) or "none"
    place = style.bold(f"{visible(str(told['path']))}:{told['line']}:")
    out = [
        f"{place} {visible(str(data['args']))}",
        f"input {shapes}, {_count(data['parameters'])} parameters, {_plural(data['profile_seeds'], 'seed')}, "
        f"trace: {data['trace']}",
    ]
    if data["assumed"]:
        out.append(
            "assumed: " + ", ".join(f"{visible(str(k))} = {visible(str(v))}" for k, v in data["assumed"].items())
        )
    rows = [_row(layer, data["profile"], block) for layer in data["profile"]]
    head = ("layer", "line", "kind", "weights", "weight gradient", "", "output")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    widths[5] = WIDTH
    out.append("")
    out.append(style.dim("  ".join(_padded(head, widths)).rstrip()))
    for row in rows:
        cells = _padded(row, widths)
        cells[5] = style.cyan(cells[5])
        out.append("  ".join(cells).rstrip())
    out.append("")
    out.extend(_chain_lines(told["optimizer"], data))
    return "\n".join(out).rstrip() + "\n"


def _row(layer: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], block: str) -> tuple[str, ...]:
    largest = max((number(one["weight_gradient"]) for one in layers), default=0.0)
    mine = number(layer["weight_gradient"])
    size = f"{layer['fan_in'] or '?'} -> {layer['fan_out'] or '?'}"
    return (
        visible(str(layer["path"])),
        str(layer["line"] or ""),
        f"{layer['op']} {size}",
        _init(str(layer["init"])),
        shown(layer["weight_gradient"]),
        block * _length(mine, largest),
        shown(layer["output_spread"]),
    )


def _length(mine: float, largest: float) -> int:
    if not (0.0 < mine < math.inf) or not (0.0 < largest < math.inf):
        return 0
    return max(1, WIDTH + round(PER_DECADE * math.log10(mine / largest)))


def _init(init: str) -> str:
    kind, _, text = init.partition(":")
    return f"std {shown(float(text))}" if kind == "normal" else kind


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]


def _chain_lines(optimizer: Optimizer, data: Mapping[str, Any]) -> list[str]:
    """What the longest chains show, and which single remedy would cure a sick one."""
    out: list[str] = []
    for chain in data["chains"]:
        if chain.get("index") == WHOLE or chain["depth"] < 3:
            continue
        written = chain["written"]
        numbers = ", ".join(f"{name} {shown(written[name])}" for name in NUMBERS if written.get(name) is not None)
        ends = f"{visible(str(chain['first']))} to {visible(str(chain['last']))}, {chain['depth']} layers"
        out.append(f"chain {ends}: {numbers or 'no gradient'}: {_state(written, optimizer)}")
        cures = [name for name, after in chain["after"].items() if cured(written, after, optimizer)]
        if fired(written, optimizer) and chain["after"]:
            names = ", ".join(remedy_name(name) for name in cures)
            out.append(f"  healthy with {names}" if cures else "  no single remedy that was tried cures it")
    return out


def _state(written: Mapping[str, Any], optimizer: Optimizer) -> str:
    if written.get("no_gradient"):
        return "no gradient reaches its end"
    if fired(written, optimizer):
        return "sick"
    return "healthy" if healthy(written, optimizer) else "between healthy and sick"


def _count(parameters: int) -> str:
    return f"{parameters:,}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
