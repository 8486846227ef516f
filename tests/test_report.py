"""What a person and a program are shown. Golden outputs: ``pytest --update-golden`` writes them anew."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from gradlint.report import text
from gradlint.report.excerpt import excerpt
from gradlint.report.json import render as render_json
from gradlint.report.progress import TerminalProgress
from gradlint.report.style import Style, visible, wants_colour
from gradlint.report.words import number
from gradlint.result import ProbeInfo, RunResult, counts, exit_status, listed
from gradlint.rule import Edit, Finding, Fix, Judgement, Location, Related
from tests.conftest import Golden

TRAIN = """\
for epoch in range(100):
    loss = criterion(model(inputs), targets)

    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1)

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

NETS = """\
class DeepNet(nn.Module):
    def __init__(self, depth=12):
        super().__init__()
"""

SOURCES = {"train.py": TRAIN, "nets.py": NETS}


def lines(path: str) -> Sequence[str]:
    return SOURCES[path].split("\n") if path in SOURCES else []


def clip(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "path": "train.py",
        "location": Location(4, 5, 4, 67),
        "symbol": "",
        "code": "GL101",
        "name": "clip-before-backward",
        "severity": "error",
        "message": "the gradients are clipped before `backward()` has computed them: what is stepped is never clipped",
        "group": "train.py:4",
        "judgement": Judgement(
            "confirmed",
            kind="replica",
            measured={
                "clip_saw": 0.0,
                "clip_returned": 0.0,
                "norm_at_step": 10.0,
                "max_norm": 1.0,
                "norm_type": 2.0,
                "iterations": 1,
            },
            after_remedy={"norm_at_step": 1.0},
            threshold={"norm_at_step": 1.01},
        ),
        "help": "move the call between `loss.backward()` and `optimizer.step()`",
        "fix": Fix("safe", "move the clip below line 7", (Edit(4, 1, 6, 1, ""), Edit(8, 1, 8, 1, "    clip()\n"))),
        "related": (Related("train.py", 7, "the gradients are computed here"),),
    }
    return Finding(**{**values, **changes})


def net(
    code: str = "GL301", name: str = "missing-normalization", remedy: str = "batch_norm", **changes: Any
) -> Finding:
    judgement = Judgement(
        "confirmed",
        kind="replica",
        measured={
            "rho_W": 1.9e-3,
            "rho_delta": 1.2e-4,
            "sigma_out": 1.8e-5,
            "depth": 12,
            "chain": ["layers.0", "layers.11"],
            "predicted": 0.0021,
            "seeds": 5,
            "optimizer": "sgd",
            "trace": "symbolic",
        },
        after_remedy={"rho_W": 0.41, "rho_delta": 0.5, "sigma_out": 0.2, "remedy": remedy},
        threshold={"rho_W": 0.01, "rho_delta": 0.01, "sigma_out": 0.01},
        assumed={"dim": 64},
    )
    values: dict[str, Any] = {
        "path": "nets.py",
        "location": Location(1, 1, 1, 26),
        "symbol": "DeepNet",
        "code": code,
        "name": name,
        "severity": "warning",
        "message": "12 weight layers with relu: the gradient vanishes on its way to the first",
        "group": "nets.py:1",
        "judgement": judgement,
        "proof": "risk",
        "help": "put a BatchNorm after each weight layer:\n\n    self.norm = nn.BatchNorm1d(64)",
    }
    return Finding(**{**values, **changes})


def unverified(reason: str = "not-built", **changes: Any) -> Finding:
    judgement = Judgement("unverified", reason, kind="replica", detail="DeepNet() needs `depth`")
    return clip(judgement=judgement, fix=None, related=(), **changes)


def result(*findings: Finding, **changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "files": 3,
        "probe": ProbeInfo(True, "2.13.0", ("landlock", "seccomp", "rlimit")),
        "probe_seconds": 0.42,
    }
    return RunResult(findings, **{**values, **changes})


def shown(*findings: Finding, style: Style | None = None) -> str:
    return text.render(findings, result(*findings), lines, style or Style())


def test_text_of_a_confirmed_clip(golden: Golden) -> None:
    golden("clip.txt", shown(clip()))


def test_text_of_a_group(golden: Golden) -> None:
    second = net("GL302", "default-initialization", "he", help="initialise each weight layer with He init")
    golden("group.txt", shown(net(), second))


def test_text_of_what_could_not_be_run(golden: Golden) -> None:
    every = [unverified(reason, group=reason) for reason in ("no-torch", "not-built", "budget", "worker-died")]
    golden("unverified.txt", shown(*every))


def test_text_of_what_was_refuted(golden: Golden) -> None:
    refuted = Judgement("refuted", kind="replay", measured={"norm_at_step": 0.3}, detail="the step was clipped")
    golden("refuted.txt", shown(clip(judgement=refuted, fix=None)))


def test_text_of_findings_without_an_experiment(golden: Golden) -> None:
    static = Judgement("confirmed", kind="static")
    here = Location(2, 10, 2, 11)
    broken = clip(code="GL001", name="syntax-error", judgement=static, location=here, path="gone.py", fix=None)
    golden("static.txt", shown(broken))


def test_text_in_colour(golden: Golden) -> None:
    golden("colour.txt", shown(clip(), unverified(group="other"), style=Style(colour=True)))


def test_text_of_nothing() -> None:
    assert shown() == "No problems found in 3 files; 0.4 s of probing.\n"
    assert text.summary([], result(files=1, probe_seconds=0.0)) == "No problems found in 1 file."


def test_statistics() -> None:
    assert (
        text.statistics([clip(), clip(), net()]) == "2  GL101  clip-before-backward\n1  GL301  missing-normalization\n"
    )
    assert text.statistics([]) == ""


def test_json(golden: Golden) -> None:
    findings = (clip(), net(), unverified())
    golden("report.json", render_json(findings, result(*findings, refuted=2)))


def test_json_is_written_for_nothing_and_has_its_fields_in_order() -> None:
    document = json.loads(render_json((), result()))
    assert list(document) == ["version", "findings", "summary", "probe"]
    assert list(document["summary"]) == ["files", "confirmed", "unverified", "refuted", "probe_seconds"]
    assert document["findings"] == []


def test_json_says_what_is_not_finite_as_text() -> None:
    judgement = Judgement("confirmed", measured={"a": math.inf, "b": -math.inf, "c": math.nan, "d": (1, 2.5)})
    document = json.loads(render_json((clip(judgement=judgement),), result()), parse_constant=pytest.fail)
    assert document["findings"][0]["evidence"]["measured"] == {"a": "inf", "b": "-inf", "c": "nan", "d": [1, 2.5]}


def test_control_characters_of_user_code_never_reach_the_terminal() -> None:
    evil = "a\x1b[31mb\x07\u202e\u2066\x9b\ud800\r"
    finding = clip(
        path=evil, message=evil, symbol=evil, help=evil, judgement=Judgement("unverified", "vetoed", detail=evil)
    )
    out = text.render([finding], result(), lambda path: [evil] * 9, Style())
    assert out.isprintable() or all(char.isprintable() or char == "\n" for char in out)
    assert "\\x1b[31m" in out
    assert visible("Größe 漢字") == "Größe 漢字"


def test_carets_stand_under_what_is_seen() -> None:
    def carets(line: str, start: int, end: int) -> str:
        return excerpt([line], Location(1, start, 1, end), Style())[-1].partition("| ")[2]

    assert carets("x = clip(a)", 5, 12) == "    ^^^^^^^"
    assert carets("\tclip(a)", 2, 9) == "    ^^^^^^^"
    assert carets("漢 = clip(a)", 5, 12) == "     ^^^^^^^"
    assert carets("x", 1, 1) == "^"
    assert carets("x", 50, 60) == " ^"


def test_long_spans_and_lines_are_cut() -> None:
    assert len(excerpt(["x(", "1,", ")"], Location(1, 1, 3, 2), Style())) == 5
    assert len(excerpt(["x("] + ["1,"] * 20, Location(1, 1, 20, 2), Style())) == 3
    assert all(len(row) < 250 for row in excerpt(["x" * 100_000], Location(1, 1, 1, 99_999), Style()))
    assert excerpt(["x"], Location(7, 1, 7, 2), Style()) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0.0"),
        (10.0, "10.0"),
        (1, "1"),
        (0.41234, "0.412"),
        (0.0123, "0.0123"),
        (7e-4, "7e-4"),
        (1.234e-5, "1.23e-5"),
        (3040.7, "3040"),
        (10.000001, "10.0"),
        (-0.5, "-0.5"),
        (123456.7, "1.23e5"),
        ("inf", "inf"),
        (math.inf, "inf"),
        (True, "True"),
    ],
)
def test_numbers_as_a_person_writes_them(value: object, said: str) -> None:
    assert number(value) == said


def test_what_is_listed_and_what_counts() -> None:
    inconclusive = net(judgement=Judgement("unverified", "inconclusive"))
    refuted = clip(judgement=Judgement("refuted"))
    run = result(refuted, net(), inconclusive, clip(path="a.py"))
    assert [f.path for f in listed(run)] == ["a.py", "nets.py"]
    assert len(listed(run, show_refuted=True)) == 4
    assert counts(clip(), "confirmed")
    assert counts(unverified(), "any")
    assert not counts(unverified(), "confirmed")
    assert not counts(clip(severity="advice"), "any")
    assert not counts(refuted, "any")


def test_exit_status() -> None:
    def status(*findings: Finding, crashed: bool = False, exit_zero: bool = False) -> int:
        return exit_status(findings, crashed=crashed, fail_on="any", exit_zero=exit_zero)

    assert status() == 0
    assert status(clip()) == 1
    assert status(clip(), exit_zero=True) == 0
    assert status(crashed=True, exit_zero=True) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_on_a_terminal_only() -> None:
    assert wants_colour(Terminal(), {})
    assert not wants_colour(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colour(Terminal(), {"TERM": "dumb"})
    assert not wants_colour(io.StringIO(), {})


def test_progress_after_a_second_on_a_terminal_only() -> None:
    now = [0.0]
    terminal = Terminal()
    progress = TerminalProgress(terminal, clock=lambda: now[0])
    progress.phase("reading", 2)
    progress.advance()
    assert terminal.getvalue() == ""
    now[0] = 1.5
    progress.advance()
    assert terminal.getvalue().endswith("gradlint: reading 2/2")
    progress.close()
    assert terminal.getvalue().endswith("\r\x1b[2K")
    pipe = io.StringIO()
    silent = TerminalProgress(pipe, clock=lambda: now[0])
    now[0] = 9.0
    silent.phase("reading")
    silent.close()
    assert pipe.getvalue() == ""
