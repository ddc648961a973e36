"""``localsgd new``: a first program that runs as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.jobs import run
from localsgd.cli.first import PROGRAM, write_first
from localsgd.cli.launcher import LaunchError
from pages import ROOT, blocks


@pytest.mark.parametrize(
    "ranks", [*(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 3)), 4]
)
def test_what_was_written_learns(tmp_path: Path, ranks: int) -> None:
    written = run("new", str(tmp_path / "train"))
    path = tmp_path / "train.py"
    assert written.stdout == f"{path} is written; run it: localsgd run -n 4 {path}\n"
    ended = run("run", "-n", str(ranks), str(path))
    assert ended.returncode == 0, ended.stderr
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+),", ended.stdout, re.M)]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 100
    assert ended.stdout.endswith("[1. 2. 3.]\n")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("mine")
    ended = run("new", str(tmp_path / "train"))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"localsgd: {tmp_path}/train.py is there already; ")
    assert ended.stderr.count("\n") == 1
    assert (tmp_path / "train.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["numpy", "json.py"])
def test_no_name_hides_a_module(tmp_path: Path, name: str) -> None:
    with pytest.raises(LaunchError, match="would hide the module"):
        write_first(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be written: No such file"):
        write_first(str(tmp_path / "no" / "train"))


def test_the_page_shows_it() -> None:
    (shown,) = blocks(ROOT / "docs/first-minutes.md", "python")
    assert shown == PROGRAM


def test_it_is_short() -> None:
    assert len(PROGRAM.splitlines()) <= 20
