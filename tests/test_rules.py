"""One test for all rules: their pages, their examples, and the controls that show an experiment can say no."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradlint.registry import HEADINGS, load, read_page
from gradlint.rule import Rule
from tests.lab import Lab, programs

RULES = load()
PROBED = [code for code, rule in RULES.items() if rule.proof != "static"]
EXAMPLES = {code: (bad, good) for code, bad, good in programs(RULES)}
SOURCE_EDIT = [code for code in PROBED if RULES[code].remedy == "source-edit"]
MODEL_EDIT = [code for code in PROBED if RULES[code].remedy == "model-edit"]


REMEDIED = [*SOURCE_EDIT, *MODEL_EDIT]
STUBS = {
    "GL101": ("clip", "backward"),
    "GL102": ("clip", "backward"),
    "GL103": ("clip", "backward"),
    "GL105": ("zero_grad", "backward"),
    "GL106": ("zero_grad",),
    "GL107": ("iterator",),
    "GL201": ("activation", "backward"),
    "GL305": ("layer",),
}
"""What a rule measures, made to do nothing: a clip, a backward, a ``zero_grad``, an iterator that is not used up, an
activation that is the identity, a layer that gives zeros."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_page(rule: Rule) -> None:
    page = read_page(rule.page)
    assert tuple(page.sections) == HEADINGS, f"{rule.code}: headings {tuple(page.sections)}"
    assert all(text.strip() for text in page.sections.values()), f"{rule.code}: an empty section"
    assert rule.summary, f"{rule.code}: no summary"
    assert rule.remedy in ("source-edit", "model-edit") or len(rule.remedy.split()) > 2, rule.code


def test_codes_and_names_are_unique() -> None:
    assert len({r.name for r in RULES.values()}) == len(RULES)
    assert all(code == rule.code for code, rule in RULES.items())


@pytest.mark.parametrize("code", PROBED)
def test_the_bad_example_is_confirmed(lab: Lab, code: str) -> None:
    rule = RULES[code]
    pairs = lab.suspects(rule, EXAMPLES[code][0])
    assert len(pairs) == 1, f"{code}: the bad example gives {len(pairs)} candidates"
    judgement = lab.verdict(rule, pairs[0])
    assert judgement.verdict == "confirmed", (judgement.reason, judgement.detail, judgement.measured)
    assert judgement.measured
    assert judgement.threshold
    if rule.remedy in ("source-edit", "model-edit"):
        assert judgement.after_remedy


@pytest.mark.parametrize("code", PROBED)
def test_the_good_example_is_silent(lab: Lab, code: str) -> None:
    facts, _ = lab.facts(EXAMPLES[code][1])
    for other in PROBED:
        assert list(RULES[other].check(facts)) == [], f"{other} speaks on the good example of {code}"


@pytest.mark.parametrize("code", PROBED)
def test_control_right_code_is_refuted(lab: Lab, code: str) -> None:
    """Right code, handed to the experiment past ``check``, must be contradicted by it."""
    rule = RULES[code]
    pairs = lab.places(rule, EXAMPLES[code][1])
    assert pairs, f"{code}: `places` finds nothing in the good example"
    for pair in pairs:
        assert lab.verdict(rule, pair).verdict == "refuted"


@pytest.mark.parametrize("code", REMEDIED)
def test_control_without_the_remedy_nothing_is_confirmed(lab: Lab, code: str) -> None:
    rule = RULES[code]
    (pair,) = lab.suspects(rule, EXAMPLES[code][0])
    controls = {"identity_edit": True} if code in SOURCE_EDIT else {"identity_remedies": True}
    assert lab.verdict(rule, pair, **controls).verdict != "confirmed"


@pytest.mark.parametrize("code", PROBED)
def test_control_without_the_measured_function_the_verdict_changes(lab: Lab, code: str) -> None:
    """A backward that does nothing, or whatever else the rule measures: see ``STUBS``."""
    rule = RULES[code]
    (pair,) = lab.suspects(rule, EXAMPLES[code][0])
    stubs = STUBS.get(code, ("backward",))
    for stub in stubs:
        judgement = lab.verdict(rule, pair, stub=stub)
        assert judgement.verdict != "confirmed", f"{code} is confirmed although {stub} does nothing"


@pytest.mark.parametrize("code", SOURCE_EDIT)
def test_the_edit_removes_the_finding_and_a_second_run_changes_nothing(lab: Lab, code: str) -> None:
    rule = RULES[code]
    ((candidate, _),) = lab.suspects(rule, EXAMPLES[code][0])
    edit = candidate.experiment.edit  # type: ignore[union-attr]
    assert edit is not None
    assert lab.suspects(rule, edit.new_text) == []
