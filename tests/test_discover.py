"""Which files a run looks at."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlint.sources import discover


def tree(root: Path, files: dict[str, str] | Sequence[str]) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name] if isinstance(files, dict) else "import torch\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*paths: str, exclude: Sequence[str] | None = None, extend: Sequence[str] = ()) -> list[str]:
    return list(discover(paths, exclude, extend))


def test_paths_come_out_as_given_sorted_and_once(here: Path) -> None:
    tree(here, ["b.py", "a.py", "pkg/c.py", "notes.txt"])
    assert found(".") == ["a.py", "b.py", "pkg/c.py"]
    assert found("pkg") == ["pkg/c.py"]
    assert found("./pkg/") == ["./pkg/c.py"]
    assert found(str(here / "pkg")) == [str(here / "pkg/c.py")]
    assert found("a.py", ".", "a.py") == ["a.py", "b.py", "pkg/c.py"]


def test_folders_that_nobody_writes_code_in_are_left_out(here: Path) -> None:
    tree(here, ["a.py", ".venv/x.py", "venv/x.py", "build/x.py", "pkg/__pycache__/x.py", "p.egg-info/x.py"])
    tree(here, ["lib/site-packages/x.py", "node_modules/x.py", ".git/x.py"])
    assert found(".") == ["a.py"]
    assert found("build") == ["build/x.py"]
    assert found("lib/site-packages") == ["lib/site-packages/x.py"]


def test_exclude_replaces_the_default_and_extend_exclude_adds_to_it(here: Path) -> None:
    tree(here, ["a.py", "build/x.py", "gen/x.py", "pkg/gen/y.py", "pkg/keep.py"])
    assert found(".", exclude=["/gen"]) == ["a.py", "build/x.py", "pkg/gen/y.py", "pkg/keep.py"]
    assert found(".", extend=["gen"]) == ["a.py", "pkg/keep.py"]
    assert found("gen", extend=["gen"]) == ["gen/x.py"]


def test_gitignore_with_negation_nesting_and_parents(here: Path) -> None:
    tree(here, ["a.py", "gen_a.py", "gen_keep.py", "sub/gen_b.py", "sub/gen_c.py", "sub/out/x.py", "sub/deep/y.py"])
    tree(here, {".gitignore": "gen_*.py\n!gen_keep.py\n# a comment\n", "sub/.gitignore": "!gen_b.py\n/out/\n"})
    (here / ".git/info").mkdir(parents=True)
    (here / ".git/info/exclude").write_text("deep/\n")
    assert found(".") == ["a.py", "gen_keep.py", "sub/gen_b.py"]
    os.chdir("sub")
    assert found(".") == ["gen_b.py"]
    assert found("gen_c.py") == ["gen_c.py"]
    assert found("deep") == ["deep/y.py"]


def test_a_gitignore_above_the_repository_does_not_hold(here: Path) -> None:
    tree(here, {".gitignore": "*.py\n", "repo/a.py": ""})
    (here / "repo/.git").mkdir()
    assert found("repo") == ["repo/a.py"]


def test_an_ignored_folder_cannot_be_taken_back_from_inside(here: Path) -> None:
    tree(here, {".gitignore": "out/\n!out/keep.py\n", "out/keep.py": "", "a.py": ""})
    assert found(".") == ["a.py"]


def test_a_worktree_finds_the_exclude_file_of_its_repository(here: Path) -> None:
    tree(here, {"main/.git/info/exclude": "gen.py\n", "main/.git/worktrees/w/commondir": "../..\n"})
    tree(here, {"w/.git": f"gitdir: {here}/main/.git/worktrees/w\n", "w/gen.py": "", "w/a.py": ""})
    assert found("w") == ["w/a.py"]


def test_links_are_safe(here: Path) -> None:
    tree(here, ["real/a.py", "zoo/b.py"])
    (here / "real/loop").symlink_to(here)
    (here / "real/gone.py").symlink_to(here / "nowhere.py")
    (here / "aaa.py").symlink_to(here / "zoo/b.py")
    assert found(".") == ["real/a.py", "zoo/b.py"]
    assert found("real/loop/zoo") == ["real/loop/zoo/b.py"]


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs there")
def test_what_is_no_regular_file_is_passed_over(here: Path) -> None:
    os.mkfifo("pipe.py")
    (here / "folder.py").mkdir()
    tree(here, ["folder.py/a.py"])
    assert found(".") == ["folder.py/a.py"]
    assert found("pipe.py", "/dev/null") == []


def test_given_files_need_no_suffix_but_notebooks_are_told_apart(here: Path) -> None:
    tree(here, ["train", "notebook.ipynb"])
    problems: list[str] = []
    assert list(discover(["train", "notebook.ipynb"], on_problem=problems.append)) == ["train"]
    assert len(problems) == 1
    assert problems[0].startswith("notebook.ipynb: ")


def test_a_folder_that_cannot_be_read_is_a_remark(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(here, ["a.py", "locked/b.py"])
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    problems: list[str] = []
    assert list(discover(["."], on_problem=problems.append)) == ["a.py"]
    assert problems == ["locked: cannot be searched: Permission denied"]


def test_very_deep_folders(here: Path) -> None:
    deep = here
    for _ in range(400):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.py").write_text("")
    assert len(found(".")) == 1


NAMES = st.sampled_from(["a", "b", "gen", "a.py", "b.py", "gen.py"])
PATTERNS = st.sampled_from(["a", "/a", "a/", "*.py", "!b.py", "gen*", "a/b", "**/b.py", "b/**", "!a/", "!gen.py"])


@settings(max_examples=20, deadline=None)
@given(
    files=st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), max_size=8),
    ignores=st.dictionaries(st.sampled_from([".", "a", "b"]), st.lists(PATTERNS, max_size=3), max_size=2),
)
def test_git_agrees(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, ...]], ignores: dict[str, list[str]]
) -> None:
    """The oracle: what ``git ls-files`` shows of the same folder."""
    import shutil
    import subprocess

    if shutil.which("git") is None:
        pytest.skip("no git here")
    root = tmp_path_factory.mktemp("repo")
    for parts in sorted(files):
        path = root.joinpath(*parts)
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    for folder, lines in ignores.items():
        if (root / folder).is_dir():
            (root / folder / ".gitignore").write_text("\n".join(lines) + "\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    listed = subprocess.run(
        ["git", "-c", "core.excludesFile=/dev/null", "ls-files", "-o", "--exclude-standard", "-z"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    expected = sorted(str(root / name) for name in listed if name.endswith(".py"))
    assert list(discover([str(root)], [])) == expected
