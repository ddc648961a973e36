"""``localsgd run --timeline`` and ``localsgd report``, in real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from localsgd.telemetry import read_runs

PROGRAM = """
import numpy as np
from localsgd import Arena, LocalSGD, optim, world

comm = world()
for period in (2, 3):
    arena = Arena({"x": np.zeros(10)}, comm)
    training = LocalSGD(optim.SGD(arena, lr=1.0), period)
    for step in range(6):
        training.step()
    training.flush()
print("ended")
"""


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "localsgd.cli", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )


def test_a_program_without_a_line_of_it_is_watched_and_reported(tmp_path: Path) -> None:
    """Two averagers, with rounds after steps 2, 4, 6 and 3, 6, and a flush each."""
    (tmp_path / "train.py").write_text(PROGRAM)
    options = ["--layout", "2+1", "--telemetry", "runs", "--timeline", "run.json"]
    ran = command("run", "-n", "3", *options, "train.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("ended") == 3
    runs = read_runs(tmp_path / "runs")
    assert [run.name for run in runs] == ["runs/1", "runs/2"]
    for run, steps in zip(runs, ([2, 4, 6, 6], [3, 6, 6]), strict=True):
        assert {rank: host for rank, (host, _) in run.hosts.items()} == {0: 0, 1: 0, 2: 1}
        for rank in range(3):
            assert [line.step for line in run.rounds if line.rank == rank] == steps
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    named = [event["name"] for event in events if re.match("round|flush", event["name"])]
    assert len(named) == 3 * (4 + 3)
    reported = command("report", "runs", "--out", "page.html", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert reported.stdout.split() == ["page.html", "page-rounds.png", "page-stragglers.png"]
    assert "runs/2" in (tmp_path / "page.html").read_text()


def test_a_timeline_alone_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    ran = command("run", "-n", "1", "--timeline", "run.json", "train.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "train.py"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)")
    ran = command("run", "-n", "1", "--timeline", "run.json", "train.py", cwd=tmp_path)
    assert ran.returncode == 0
    assert re.search(r"there is no timeline: .* must have files rank-\*\.jsonl", ran.stderr)
    reported = command("report", "nothing", cwd=tmp_path)
    assert reported.returncode == 1
    assert "nothing must have files rank-*.jsonl, got none" in reported.stderr
