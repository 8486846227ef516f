"""The texts of ``gradlint explain`` and ``gradlint rules``, made from the rule files."""

from __future__ import annotations

from gradlint.config import Config, read_config, user_config_path
from gradlint.errors import UsageProblem
from gradlint.registry import load
from gradlint.report.rules_table import plain
from gradlint.rule import Rule
from gradlint.selection import expand


def overview() -> str:
    """All rules: gradlint's own and those of the user's configuration."""
    return plain(_rules().values())


def page(selector: str, *, terminal: bool) -> str:
    """The page of one rule, by code or name. ``terminal``: with colours.

    Raises :class:`UsageProblem` if no rule, or more than one, is called so.
    """
    rules = _rules()
    found = sorted(expand([selector], rules))
    if len(found) > 1:
        raise UsageProblem(f"{selector!r} is the beginning of several codes: {', '.join(found)}")
    text = _text(rules[found[0]])
    return _coloured(text) if terminal else text


def _rules() -> dict[str, Rule]:
    path = user_config_path()
    user = read_config(path, table=()) if path.is_file() else Config()
    return load(user.rules)


def _text(rule: Rule) -> str:
    body = rule.page.partition("\n")[2].strip("\n")
    head = f"# {rule.code} {rule.name}\n\n{rule.summary} ({rule.severity}; evidence: {_EVIDENCE[rule.proof]})\n"
    return f"{head}\n{body}\n"


_EVIDENCE = {
    "exact": "an experiment, with no threshold to argue about",
    "risk": "an experiment, against a threshold",
    "static": "what is reported was seen",
}


def _coloured(text: str) -> str:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(force_terminal=True)
    with console.capture() as capture:
        console.print(Markdown(text))
    return capture.get()
