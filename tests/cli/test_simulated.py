"""The command ``localsgd simulate``: a script on simulated workers, its table, and mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from localsgd.cli.commands import localsgd as command

SCRIPT = """
import sys
import numpy as np
import localsgd
from localsgd import Arena, LocalSGD, optim

comm = localsgd.world()
params = Arena({"w": np.full(1000, comm.rank, np.float32)}, comm)
training = LocalSGD(optim.SGD(params, lr=0.0), period=4, comm=comm)
for _ in range(int(sys.argv[1])):
    training.step()
print(f"{__name__} of {comm.size}: {params['w'][0]:g}\\n", end="")
"""
NETWORK = ("--network", "host=50GB/s,1us; wan=100Mbit/s,50ms")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.argv", ["pytest"])
    monkeypatch.setattr("sys.path", [*sys.path])
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return str(path)


def test_a_script_runs_on_every_worker_and_its_time_is_said(script: str) -> None:
    """Eight steps of 1 s, and rounds whose latencies are 50 ms: between 8 and 10 s."""
    words = ("--workers", "4", "--hosts", "2x2", *NETWORK, "--step-time", "1", "--", script, "8")
    ended = CliRunner().invoke(command, ["simulate", *words])
    assert ended.exit_code == 0, ended.output
    lines = ended.output.splitlines()
    assert lines.count("__main__ of 4: 0") == 4
    took = next(line for line in lines if line.startswith("4 workers took"))
    assert 8 < float(took.split()[3]) < 10
    assert "The last 3 of 3 rounds" in ended.output


def test_workers_that_do_not_fit_the_hosts_are_an_error(script: str) -> None:
    words = ("--workers", "5", "--hosts", "2x2", *NETWORK, script)
    ended = CliRunner().invoke(command, ["simulate", *words])
    assert ended.exit_code == 1
    assert "hosts must hold 5 ranks" in ended.output


def test_what_the_script_raises_is_said_with_its_rank(script: str) -> None:
    ended = CliRunner().invoke(
        command, ["simulate", "--workers", "1", "--network", "wan=1Gbit/s,1ms", script, "some"]
    )
    assert str(ended.exception).endswith("train.py failed on rank 0")
    assert isinstance(ended.exception.__cause__, ValueError)
