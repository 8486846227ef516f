"""The command line as a person or a tool meets it: each test is one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradlint.pages import page
from tests.conftest import Run

CLIP_FIRST = """\
import torch
from torch import nn

model = nn.Linear(10, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for _ in range(20):
    loss = model(torch.randn(32, 10)).pow(2).mean()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

CLEAN = "import torch\n\nx = torch.zeros(3)\n"


@pytest.fixture
def folder(gradlint: Run) -> Path:
    return gradlint.folder  # type: ignore[attr-defined, no-any-return]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def one_line_about(completed: subprocess.CompletedProcess[str], *words: str) -> None:
    assert completed.returncode == 2, completed
    assert completed.stdout == ""
    lines = completed.stderr.splitlines()
    assert len(lines) == 1, completed.stderr
    assert lines[0].startswith("gradlint: ")
    for word in words:
        assert word in lines[0]


# -- which words are commands, which are paths ---------------------------------------------------------


def test_a_path_needs_no_command(gradlint: Run, folder: Path) -> None:
    write(folder, clean=CLEAN)
    for arguments in (
        ["clean.py"],
        ["check", "clean.py"],
        ["--no-probe", "clean.py"],
        ["--", "clean.py"],
        ["."],
        ["check"],
    ):
        completed = gradlint(*arguments)
        assert completed.returncode == 0, (arguments, completed)
        assert completed.stdout == "No problems found in 1 file.\n"


def test_a_folder_with_the_name_of_a_command(gradlint: Run, folder: Path) -> None:
    (folder / "rules").mkdir()
    (folder / "rules" / "a.py").write_text(CLEAN)
    for arguments in (["rules/"], ["./rules"], ["--", "rules"], ["check", "rules"], ["--no-probe", "rules"]):
        assert gradlint(*arguments).stdout == "No problems found in 1 file.\n", arguments
    assert gradlint("rules").stdout.startswith("GL001  syntax-error")


def test_no_argument_at_all_shows_the_help(gradlint: Run) -> None:
    completed = gradlint()
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert "Usage: gradlint" in completed.stderr


def test_version_and_help(gradlint: Run) -> None:
    assert gradlint("--version").stdout == "gradlint 0.1.0\n"
    assert "Usage: gradlint" in gradlint("--help").stdout
    assert "--probe-budget" in gradlint("check", "-h").stdout


def test_explain_and_rules(gradlint: Run) -> None:
    by_code, by_name = gradlint("explain", "GL101"), gradlint("explain", "clip-before-backward")
    assert by_code.stdout == by_name.stdout
    assert by_code.stdout.startswith("# GL101 clip-before-backward\n")
    assert "## When to ignore it" in by_code.stdout
    assert gradlint("rules").stdout.count("\n") >= 4


def test_explain_has_colours_on_a_terminal_only() -> None:
    assert "\x1b[" in page("GL101", terminal=True)
    assert "\x1b[" not in page("GL101", terminal=False)


# -- bad input: one line, status 2, before any work ----------------------------------------------------


def test_wrong_usage(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLIP_FIRST)
    one_line_about(gradlint("a.py", "gone.py"), "gone.py", "no such file or folder")
    one_line_about(gradlint("--nope", "a.py"), "--nope", "gradlint check --help")
    one_line_about(gradlint("--select", "GL999", "a.py"), "GL999")
    one_line_about(gradlint("--ignore", "clip-before-backwards", "a.py"), "did you mean clip-before-backward?")
    one_line_about(gradlint("--format", "xml", "a.py"), "xml", "json")
    one_line_about(gradlint("--probe-timeout", "-1", "a.py"), "--probe-timeout")
    one_line_about(gradlint("--jobs", "0", "a.py"), "--jobs")
    one_line_about(gradlint("--python", "nowhere", "a.py"), "nowhere", "Python interpreter")
    one_line_about(gradlint("--output", "gone/report.json", "a.py"), "gone/report.json")
    one_line_about(gradlint("--stdin-filename", "b.py", "a.py"), "--stdin-filename")
    one_line_about(gradlint("-", "a.py"), "stdin")
    one_line_about(gradlint("--unsafe-fixes", "a.py"), "--fix")
    one_line_about(gradlint("explain", "GL999"), "GL999")
    one_line_about(gradlint("a\x1b[31m.py"), "a\\x1b[31m.py")
    assert (folder / "a.py").read_text() == CLIP_FIRST


def test_bad_configuration(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLEAN)
    (folder / "pyproject.toml").write_text("[tool.gradlint\n")
    one_line_about(gradlint("a.py"), "pyproject.toml", "not valid TOML", "line 1")
    (folder / "pyproject.toml").write_text("[tool.gradlint]\nselekt = []\n")
    one_line_about(gradlint("a.py"), "pyproject.toml", "'selekt'", "'select'")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLEAN)
    (folder / "a.py").chmod(0)
    one_line_about(gradlint("a.py"), "a.py", "permission denied")


# -- what is reported, where, with which status --------------------------------------------------------


def test_a_broken_file_does_not_cost_the_others(gradlint: Run, folder: Path) -> None:
    write(folder, a="import torch\ndef f(:\n", b=CLIP_FIRST, c="import torch\n\0", d="def f(:\n")
    completed = gradlint("--no-probe", "--format", "json", ".")
    report = json.loads(completed.stdout)
    assert completed.returncode == 1
    assert [(f["path"], f["line"], f["code"], f["verdict"]) for f in report["findings"]] == [
        ("a.py", 2, "GL001", "confirmed"),
        ("b.py", 9, "GL101", "unverified"),
        ("c.py", 2, "GL001", "confirmed"),
    ]
    assert report["probe"] == {"available": False, "torch": None, "confinement": [], "reason": "probe-off"}


def test_status(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLIP_FIRST)
    assert gradlint("--no-probe", "a.py").returncode == 1
    assert gradlint("--no-probe", "--exit-zero", "a.py").returncode == 0
    assert gradlint("--no-probe", "--fail-on", "confirmed", "a.py").returncode == 0
    assert gradlint("--no-probe", "--ignore", "GL101", "a.py").returncode == 0
    assert gradlint("--no-probe", "--select", "GL2,GL3", "a.py").returncode == 0


def test_a_rule_of_ones_own_that_cannot_be_loaded_is_reported_last(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLIP_FIRST, own="raise ValueError('no luck')\n")
    (folder / "pyproject.toml").write_text('[tool.gradlint]\nrules = ["own.py"]\n')
    untrusted = gradlint("--no-probe", "a.py")
    assert untrusted.returncode == 1
    assert "--trust-project" in untrusted.stderr
    trusted = gradlint("--no-probe", "--trust-project", "--format", "json", "a.py")
    assert trusted.returncode == 2
    assert {f["code"] for f in json.loads(trusted.stdout)["findings"]} == {"GL101", "GL003"}


def test_stdin(gradlint: Run) -> None:
    completed = gradlint("-", "--no-probe", "--stdin-filename", "some/train.py", input=CLIP_FIRST)
    assert completed.returncode == 1
    assert completed.stdout.startswith("some/train.py:9:5: GL101 clip-before-backward [unverified]\n")
    assert "9 |     torch.nn.utils.clip_grad_norm_(" in completed.stdout
    assert gradlint("-", input=CLEAN).returncode == 0


def test_silence(gradlint: Run, folder: Path) -> None:
    silent = CLIP_FIRST.replace("max_norm=1.0)", "max_norm=1.0)  # gradlint: ignore[GL101] logged only")
    write(folder, a=silent, b=CLEAN.replace("(3)", "(3)  # noqa: GL101"))
    report = json.loads(gradlint("--format", "json", "--no-probe", ".").stdout)
    assert [(f["path"], f["code"]) for f in report["findings"]] == [("b.py", "GL002")]


def test_per_file_ignores_and_excludes(gradlint: Run, folder: Path) -> None:
    for name in ("tests", "old"):
        (folder / name).mkdir()
        (folder / name / "a.py").write_text(CLIP_FIRST)
    (folder / "pyproject.toml").write_text(
        '[tool.gradlint]\nextend-exclude = ["/old"]\nper-file-ignores = {"tests/*" = ["GL1"]}\n'
    )
    assert gradlint("--no-probe", ".").returncode == 0
    assert gradlint("--no-probe", "old/a.py").returncode == 1, "a file that is given is linted"
    assert gradlint("--no-probe", ".", cwd=folder / "old").returncode == 1


def test_output_and_statistics(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLIP_FIRST)
    completed = gradlint("--no-probe", "--format", "json", "--output", "report.json", "--statistics", "a.py")
    assert completed.stdout == ""
    assert completed.stderr == "1  GL101  clip-before-backward\n"
    assert json.loads((folder / "report.json").read_text())["summary"]["unverified"] == 1
    write(folder, a=CLEAN)
    gradlint("--format", "json", "--output", "report.json", "a.py")
    assert json.loads((folder / "report.json").read_text())["findings"] == []


def test_a_reader_that_goes_away_is_no_traceback(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLIP_FIRST)
    command = f"{sys.executable} -m gradlint --no-probe a.py | true"
    completed = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60)
    assert completed.stderr == ""


def test_names_that_no_terminal_should_see(gradlint: Run, folder: Path) -> None:
    name = os.fsdecode(b"a\x1b[31m\xff.py")
    (folder / name).write_text(CLIP_FIRST)
    text, document = gradlint("--no-probe", "."), gradlint("--no-probe", "--format", "json", ".")
    assert text.stdout.startswith("a\\x1b[31m\\udcff.py:9:5: GL101")
    assert json.loads(document.stdout)["findings"][0]["path"] == name


# -- fixes ---------------------------------------------------------------------------------------------


def test_fix_and_diff(gradlint: Run, folder: Path) -> None:
    write(folder, a=CLIP_FIRST)
    shown = gradlint("--diff", "a.py")
    assert shown.returncode == 1
    assert "-    torch.nn.utils.clip_grad_norm_(" in shown.stdout
    assert "+    torch.nn.utils.clip_grad_norm_(" in shown.stdout
    assert (folder / "a.py").read_text() == CLIP_FIRST

    fixed = gradlint("--fix", "a.py")
    assert fixed.returncode == 0, fixed
    assert "a.py:9: GL101 clip-before-backward" in fixed.stderr
    lines = (folder / "a.py").read_text().splitlines()
    assert lines.index("    loss.backward()") < lines.index(
        "    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)"
    )
    again = (folder / "a.py").read_text()
    assert gradlint("--fix", "a.py").returncode == 0
    assert (folder / "a.py").read_text() == again


def test_fix_from_stdin_prints_the_text(gradlint: Run, folder: Path) -> None:
    completed = gradlint("-", "--fix", "--stdin-filename", "a.py", input=CLIP_FIRST)
    assert completed.returncode == 0
    assert sorted(completed.stdout.splitlines()) == sorted(CLIP_FIRST.splitlines())
    assert completed.stdout != CLIP_FIRST
    assert not (folder / "a.py").exists()


# -- what is imported ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["--version"]])
def test_help_imports_little(gradlint: Run, arguments: list[str]) -> None:
    completed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gradlint", *arguments], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in completed.stderr.splitlines()}
    heavy = {"libcst", "torch", "rich", "pathspec", "platformdirs", "asyncio", "multiprocessing", "tomllib", "json"}
    assert not heavy & {name.partition(".")[0] for name in imported}
    assert "gradlint.rule" not in imported


def test_a_folder_without_torch_needs_no_libcst(gradlint: Run, folder: Path) -> None:
    write(folder, a="import numpy\n")
    completed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gradlint", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in completed.stderr.splitlines()}
    assert not {"libcst", "torch", "rich"} & imported


THREE_FIRST_USES = """\
import torch
from torch import nn, optim


class Solver:
    def __init__(self, kind):
        self.net = nn.Linear(4, 1)
        self.params = self.net.parameters()
        if kind == "sgd":
            self.optimizer = optim.SGD(self.params, lr=0.1)
        elif kind == "adam":
            self.optimizer = optim.Adam(self.params, lr=0.1)
        else:
            self.optimizer = optim.Adadelta(self.params, lr=0.1)

    def fit(self, batches):
        for x, y in batches:
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.net(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
"""


def test_message_is_the_same_whatever_the_order_of_sets(gradlint: Run, folder: Path) -> None:
    write(folder, program=THREE_FIRST_USES)
    seen = set()
    for seed in range(8):
        done = gradlint("--no-probe", "--format", "json", "program.py", env={**os.environ, "PYTHONHASHSEED": str(seed)})
        seen.add(json.loads(done.stdout)["findings"][0]["message"])
    assert seen == {"self.params is an iterator and is used up after SGD (line 10): clip_grad_norm_ gets no parameters"}
