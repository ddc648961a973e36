"""docs/start.md: its commands one after another, and the lines that it changes in its program."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pages import ROOT, blocks, commands, program

pytestmark = pytest.mark.long

PAGE = ROOT / "docs/start.md"
HERE = {"python": [sys.executable], "localsgd": [sys.executable, "-m", "localsgd.cli"]}


def run(line: str, folder: Path) -> str:
    """What a command of the page prints."""
    name, *rest = shlex.split(line)
    ended = subprocess.run(
        [*HERE[name], *rest], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def with_checkpoints() -> str:
    """The program with the lines of the page's diff changed, hunk by hunk."""
    (change,) = blocks(PAGE, "diff")
    changed = program(PAGE)
    for hunk in change.strip("\n").split("\n\n"):
        old, new = (
            "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[0] in f" {sign}")
            for sign in "-+"
        )
        assert changed.count(old) == 1, old
        changed = changed.replace(old, new)
    return changed


def saved_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("saved/step-*"))


def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(program(PAGE))
    lines = [line for line in commands(PAGE) if "train.py" in line or "report" in line]
    alone, on_four, watched, report = [line for line in lines if line.split()[0] in HERE][:4]
    off = re.findall(r"`off by ([\d.]+)`", PAGE.read_text())
    assert run(alone, tmp_path) == f"worker 0 of 1: off by {off[0]}\n"
    said = [f"worker {rank} of 4: off by {off[1]}" for rank in range(4)]
    assert sorted(run(on_four, tmp_path).splitlines()) == said
    run(watched, tmp_path)
    run(report, tmp_path)
    assert {"report.html", "timeline.json", "runs"} <= set(os.listdir(tmp_path))


def test_the_changed_program_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """It is stopped after 100 of its 256 steps, and then started again by the page's command."""
    whole = with_checkpoints().replace(":.3f}", "}")
    counted = whole.replace("training.step()", "taken.append(training.step())")
    (tmp_path / "whole.py").write_text(whole.replace('"saved"', '"elsewhere"'))
    (tmp_path / "stopped.py").write_text(whole.replace("256", "100"))
    (tmp_path / "train.py").write_text(f"taken = []\n{counted}print(len(taken), 'steps')\n")
    (again,) = (line for line in commands(PAGE) if "--restarts" in line)
    expected = run(again.replace("train.py", "whole.py"), tmp_path)
    run(again.replace("train.py", "stopped.py"), tmp_path)
    assert saved_in(tmp_path) == ["step-000000050", "step-000000100"]
    found = run(again, tmp_path)
    assert sorted(found.splitlines()) == sorted([*expected.splitlines(), *["156 steps"] * 4])
    assert saved_in(tmp_path)[-1] == "step-000000250"
