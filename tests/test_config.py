"""Configuration files, the command line over them, and what of them is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradlint.config import Options, Settings, Sources, check_rule_paths, find_project_config, read_all, settle
from gradlint.errors import UsageProblem
from gradlint.registry import load

RULES = load()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    return tmp_path


def configure(folder: Path, text: str, *, trust: bool = False, user: str = "") -> Sources:
    (folder / "pyproject.toml").write_text("[tool.gradlint]\n" + text)
    (folder / "user.toml").write_text(user)
    return read_all([str(folder)], trust_project=trust, user_file=folder / "user.toml")


def settled(
    folder: Path, text: str, options: Options | None = None, *, trust: bool = False, user: str = ""
) -> Settings:
    return settle(configure(folder, text, trust=trust, user=user), options or Options(), RULES)


def test_everything_is_read(here: Path) -> None:
    settings = settled(
        here,
        """
        select = ["GL1", "GL201"]
        ignore = ["deep-sigmoid-stack"]
        extend-select = ["GL302"]
        exclude = ["gen/"]
        extend-exclude = ["old.py"]
        per-file-ignores = {"tests/*" = ["GL1"]}
        inputs = {Net = [[32, 10]], Pair = [[32, 10], [32, 4]], Flat = [32, 10]}
        fail-on = "confirmed"
        probe = false
        probe-timeout = 2
        probe-budget = 60.5
        """,
    )
    steps = {code for code in RULES if code.startswith("GL1")}
    assert settings.selected == {"GL001", "GL003", "GL302"} | steps
    assert settings.exclude == ("gen/",)
    assert settings.extend_exclude == ("old.py",)
    assert settings.per_file_ignores == (("tests/*", frozenset(steps)),)
    assert settings.inputs == {"Net": ((32, 10),), "Pair": ((32, 10), (32, 4)), "Flat": ((32, 10),)}
    assert (settings.fail_on, settings.probe, settings.probe_timeout, settings.probe_budget) == (
        "confirmed",
        False,
        2.0,
        60.5,
    )
    assert settings.root == str(here)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("selects = []", "did you mean 'select'?"),
        ("colour = 1", "the keys are"),
        ('select = "GL1"', "select must be a list of strings"),
        ("select = [1]", "select must be a list of strings"),
        ('select = ["GL9"]', "no rule is called 'GL9'"),
        ('per-file-ignores = ["GL1"]', "per-file-ignores must be a table"),
        ('per-file-ignores = {"a" = ["GL9"]}', "no rule is called 'GL9'"),
        ("inputs = {Net = [[32, -1]]}", "inputs must be a table of shapes"),
        ("inputs = {Net = 3}", "inputs must be a table of shapes"),
        ('fail-on = "all"', "fail-on must be"),
        ("probe = 1", "probe must be true or false"),
        ("probe-timeout = 0", "probe-timeout must be a number of seconds above 0"),
        ("probe-budget = true", "probe-budget must be"),
        ("python = []", "python must be a string"),
        ("select = [", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_file(here: Path, text: str, words: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        settled(here, text)
    assert words in str(caught.value)
    assert "pyproject.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(here: Path) -> None:
    (here / "pyproject.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageProblem, match="not valid TOML"):
        read_all(["."], user_file=here / "none.toml")


def test_the_nearest_file_that_speaks_of_gradlint_counts(here: Path) -> None:
    (here / "pyproject.toml").write_text("[tool.gradlint]\n")
    (here / "a/b").mkdir(parents=True)
    (here / "a/pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert find_project_config(["a/b"]) == here / "pyproject.toml"
    (here / "a/b/pyproject.toml").write_text("[tool.gradlint]\n")
    assert find_project_config(["a/b/train.py"]) == here / "a/b/pyproject.toml"
    assert find_project_config(["a", "a/b"]) == here / "pyproject.toml"


def test_the_search_ends_at_the_top_of_the_repository(here: Path) -> None:
    (here / "pyproject.toml").write_text("[tool.gradlint]\n")
    (here / "repo/.git").mkdir(parents=True)
    assert find_project_config(["repo"]) is None


def test_the_command_line_wins_over_the_project_and_that_over_the_user(here: Path) -> None:
    user = 'fail-on = "confirmed"\nprobe-timeout = 1\nignore = ["GL301"]\n'
    settings = settled(here, "probe-timeout = 2\nprobe-budget = 3", Options(probe_budget=4.0), user=user)
    assert (settings.fail_on, settings.probe_timeout, settings.probe_budget) == ("confirmed", 2.0, 4.0)
    assert "GL301" not in settings.selected


def test_selection(here: Path) -> None:
    def codes(text: str = "", **options: tuple[str, ...]) -> set[str]:
        return {c for c in settled(here, text, Options(**options)).selected if c > "GL1"}  # type: ignore[arg-type]

    every = {code for code, rule in RULES.items() if code > "GL1" and rule.severity != "advice"}
    assert codes() == every
    assert codes(select=("GL101",)) == {"GL101"}
    assert codes(select=("gl101",)) == {"GL101"}
    assert codes(select=("clip-before-backward",)) == {"GL101"}
    assert codes(select=("GL3", "GL1"), ignore=("GL302",)) == {c for c in RULES if c[:3] in ("GL1", "GL3")} - {"GL302"}
    assert codes(select=("GL101",), ignore=("GL1",)) == {"GL101"}, "the more specific wins"
    assert codes('ignore = ["GL101"]', select=("GL101",)) == {"GL101"}, "a new select starts afresh"
    assert codes('select = ["GL1"]', extend_select=("GL201",)) >= {"GL101", "GL201"}
    assert codes('select = ["GL101", "GL201"]', ignore=("GL2",)) == {"GL101"}


def test_a_broken_file_is_reported_whatever_is_selected(here: Path) -> None:
    assert settled(here, "", Options(select=("GL101",))).selected == {"GL001", "GL003", "GL101"}
    assert "GL001" not in settled(here, "", Options(ignore=("GL001",))).selected


def test_what_the_project_would_run_is_left_out_and_said(here: Path) -> None:
    (here / ".venv/bin").mkdir(parents=True)
    (here / ".venv/bin/python").touch(mode=0o755)
    (here / "own.py").touch()
    text = 'python = "py"\nrules = ["own.py"]'
    settings = settled(here, text)
    assert settings.python is None
    assert settings.rules == ()
    assert settings.venv_python is None
    assert settings.untrusted_venv == str(here / ".venv/bin/python")
    assert len(settings.notes) == 1
    assert "--trust-project" in settings.notes[0]

    (here / "py").touch(mode=0o755)
    trusted = settled(here, text, trust=True)
    assert trusted.python == str(here / "py")
    assert trusted.rules == (str(here / "own.py"),)
    assert trusted.venv_python == str(here / ".venv/bin/python")
    assert trusted.notes == ()


def test_the_users_own_configuration_is_trusted(here: Path) -> None:
    (here / "py").touch(mode=0o755)
    settings = settled(here, "", user='python = "py"\nrules = ["own.py"]')
    assert settings.python == str(here / "py")
    assert settings.rules == (str(here / "own.py"),)
    with pytest.raises(UsageProblem, match=r"own\.py: no such rule file"):
        check_rule_paths(settings.rules)


@pytest.mark.parametrize("python", ["nowhere", "."])
def test_an_interpreter_that_is_none(here: Path, python: str) -> None:
    with pytest.raises(UsageProblem, match="is not a Python interpreter"):
        settled(here, "", Options(python=python))
