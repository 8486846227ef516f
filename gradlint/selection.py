"""Which rules a run uses: codes, prefixes and names, from the configuration and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from gradlint.errors import UsageProblem
from gradlint.rule import Rule

ALWAYS = ("GL001", "GL003")
"""Reported whatever is selected, unless ignored by name: a file that could not be checked is not a clean file."""

EVERYTHING = "ALL"


@dataclasses.dataclass(frozen=True)
class Layer:
    """The selectors of one place (a file, the command line). ``select=None``: what was selected before."""

    select: tuple[str, ...] | None = None
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    where: str = ""


def choose(layers: Sequence[Layer], rules: Mapping[str, Rule]) -> frozenset[str]:
    """The codes that ``layers`` leave on; a later layer wins over an earlier one.

    Inside a layer the most specific selector wins, and ``ignore`` where both are equally specific.
    A ``select`` starts afresh: it also forgets what earlier layers ignored. Advice is off unless selected.
    """
    chosen = {code for code, rule in rules.items() if rule.severity != "advice"}
    for layer in layers:
        ignored = _weights(layer.ignore, rules, layer.where)
        added = _weights((*(layer.select or ()), *layer.extend_select), rules, layer.where)
        if layer.select is not None:
            chosen = {code for code in ALWAYS if code in rules}
        chosen |= set(added)
        chosen -= {code for code, weight in ignored.items() if weight >= added.get(code, 0)}
    return frozenset(chosen)


def expand(selectors: Iterable[str], rules: Mapping[str, Rule], where: str = "") -> frozenset[str]:
    """The codes that ``selectors`` name.

    Raises :class:`UsageProblem` for a selector that names no rule; ``where`` says where it stands.
    """
    return frozenset(_weights(selectors, rules, where))


def _weights(selectors: Iterable[str], rules: Mapping[str, Rule], where: str) -> dict[str, int]:
    """How specifically each code was named: the length of the prefix; a full code or a name beats every prefix."""
    weights: dict[str, int] = {}
    for selector in selectors:
        found = _matching(selector, rules)
        if not found:
            raise UsageProblem(_unknown(selector, rules, where))
        for code, weight in found.items():
            weights[code] = max(weight, weights.get(code, 0))
    return weights


def _matching(selector: str, rules: Mapping[str, Rule]) -> dict[str, int]:
    wanted = selector.upper()
    if wanted == EVERYTHING:
        return dict.fromkeys(rules, 1)
    exact = {code: 100 for code, rule in rules.items() if wanted == code or selector.lower() == rule.name}
    if exact:
        return exact
    if not re.fullmatch(r"[A-Z]+[0-9]*", wanted):
        return {}
    return {code: 1 + len(wanted) for code in rules if code.startswith(wanted)}


def _unknown(selector: str, rules: Mapping[str, Rule], where: str) -> str:
    names = [*rules, *(rule.name for rule in rules.values())]
    close = difflib.get_close_matches(selector, names, n=1) or difflib.get_close_matches(selector.upper(), names, n=1)
    hint = f"did you mean {close[0]}?" if close else "`gradlint rules` lists them"
    return f"{where + ': ' if where else ''}no rule is called {selector!r}: {hint}"
