"""Fixes written to files."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

import pytest

from gradlint.fix import edits
from gradlint.rewrite import diff, fixable, rewrite, write
from gradlint.rule import Finding, Fix, Judgement, Location

OLD = "import torch\na()\nb()\nc()\n"
NEW = "import torch\nb()\na()\nc()\n"


def finding(old: str = OLD, new: str = NEW, *, safe: bool = True, path: str = "a.py") -> Finding:
    fix = Fix("safe" if safe else "unsafe", "move it", edits(old, new))
    place = Location(2, 1, 2, 4)
    return Finding(path, place, "", "GL101", "clip", "error", "m", "g", Judgement("confirmed"), fix=fix)


def after(data: bytes, *findings: Finding) -> bytes:
    rewritten = rewrite("a.py", data, findings or (finding(),))
    assert rewritten is not None
    return rewritten.after


def test_only_safe_fixes_unless_asked_for() -> None:
    found = [finding(), finding(safe=False, path="b.py")]
    assert list(fixable(found, unsafe=False)) == ["a.py"]
    assert list(fixable(found, unsafe=True)) == ["a.py", "b.py"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_stay(newline: str) -> None:
    assert after(OLD.replace("\n", newline).encode()) == NEW.replace("\n", newline).encode()


def test_mixed_line_ends_stay_where_they_are() -> None:
    old, new = "import torch\na()\nb()\nc()\nd()\n", "import torch\na()\nx()\nb()\nc()\nd()\n"
    assert after(b"import torch\r\na()\nb()\r\nc()\r\nd()\n", finding(old, new)) == (
        b"import torch\r\na()\nx()\r\nb()\r\nc()\r\nd()\n"
    )


def test_encoding_and_byte_order_mark_stay() -> None:
    assert after(codecs.BOM_UTF8 + OLD.encode()) == codecs.BOM_UTF8 + NEW.encode()
    old, new = (f"# coding: latin-1\n# \u00e9\n{text}" for text in (OLD, NEW))
    assert after(old.encode("latin-1"), finding(old, new)) == new.encode("latin-1")


def test_no_line_end_at_the_end_of_the_file() -> None:
    old, new = OLD.removesuffix("\n"), NEW.removesuffix("\n")
    assert after(old.encode(), finding(old, new)) == new.encode()


def test_fixes_that_touch_each_other_wait_for_their_turn() -> None:
    rewritten = rewrite("a.py", OLD.encode(), [finding(), finding(new=OLD.replace("a()", "aa()"))])
    assert rewritten is not None
    assert rewritten.after == NEW.encode()
    assert len(rewritten.applied) == 1


def test_nothing_to_do() -> None:
    assert rewrite("a.py", OLD.encode(), [finding(new=OLD)]) is None
    assert rewrite("a.py", b"import numpy\n", [finding()]) is None


def test_writing_keeps_mode_and_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target.py", tmp_path / "link.py"
    target.write_text(OLD)
    target.chmod(0o750)
    link.symlink_to(target)
    rewritten = rewrite(str(link), OLD.encode(), [finding()])
    assert rewritten is not None
    write(rewritten)
    assert link.is_symlink()
    assert target.read_text() == NEW
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert sorted(os.listdir(tmp_path)) == ["link.py", "target.py"]


def test_a_failure_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.py"
    path.write_text(OLD)
    rewritten = rewrite(str(path), OLD.encode(), [finding()])
    assert rewritten is not None

    def refuse(*names: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write(rewritten)
    assert path.read_text() == OLD
    assert os.listdir(tmp_path) == ["a.py"]


def test_diff() -> None:
    rewritten = rewrite("a.py", OLD.removesuffix("\n").encode(), [finding()])
    assert rewritten is not None
    assert "".join(diff(rewritten)) == (
        "--- a.py\n+++ a.py\n@@ -1,4 +1,4 @@\n import torch\n+b()\n a()\n-b()\n c()\n\\ No newline at end of file\n"
    )
