"""What ships beside the code is true: the README, the hook, the package's metadata, the worked example."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gradlint as package
from gradlint.registry import load
from gradlint.report.rules_table import markdown
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TUTORIAL = "fixtures/wrong/tutorial_clip.py"


def marked(name: str, content: str, *, update: bool) -> None:
    """Compare what stands between two marks of the README with ``content``."""
    text = README.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    assert begin in text
    assert end in text
    head, _, rest = text.partition(begin)
    body, _, tail = rest.partition(end)
    if update:
        README.write_text(head + begin + content + end + tail, encoding="utf-8")
        body = content
    assert body == content


def test_the_readme_lists_the_rules_as_they_are(update_golden: bool) -> None:
    marked("rules", markdown(load().values()), update=update_golden)


def test_the_readme_shows_the_output_as_it_is(gradlint: Run, update_golden: bool) -> None:
    completed = gradlint(TUTORIAL, cwd=ROOT)
    assert completed.returncode == 1, completed.stderr
    report = re.sub(r"; [0-9.]+ s of probing", "", completed.stdout)
    marked("example", f"```\n$ gradlint {TUTORIAL}\n{report}```\n", update=update_golden)


def test_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "torch-gradlint"
    assert project["scripts"] == {"gradlint": "gradlint.cli:main"}
    assert (ROOT / "gradlint" / "py.typed").exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+", package.__version__)


def test_the_changelog_knows_every_rule() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert not [code for code in load() if code not in text]


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_rule_of_the_contributing_guide_works(gradlint: Run) -> None:
    """The worked example: its code, loaded as a rule of one's own, run on its own two examples."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"````python\n(.*?)````", guide, re.DOTALL)
    assert code is not None
    folder: Path = gradlint.folder  # type: ignore[attr-defined]
    (folder / "rule.py").write_text(code[1])
    bad, good = re.findall(r"```python\n(.*?)```", code[1], re.DOTALL)
    (folder / "bad.py").write_text(bad)
    (folder / "good.py").write_text(good)
    (folder / "pyproject.toml").write_text('[tool.gradlint]\nrules = ["rule.py"]\nselect = ["ACME"]\n')
    completed = gradlint("--trust-project", "bad.py", "good.py")
    assert completed.stdout.startswith("bad.py:5:1: ACME001 unused-parameters [confirmed]\n"), completed
    assert "good.py" not in completed.stdout


def test_the_wheel_ships_the_rules(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("torch_gradlint-*.whl")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    )
    assert "gradlint/_rules/gl101_clip_before_backward.py" in names.stdout
    assert "gradlint/probe/worker/zygote.py" in names.stdout
    assert "gradlint/py.typed" in names.stdout
    assert "tests/" not in names.stdout
