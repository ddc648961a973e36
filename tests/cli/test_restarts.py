"""Jobs that fail and are started again on this host, and those that are not."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from cli.jobs import LIMIT_S, run, started
from integration.on_hosts import interpreter

pytestmark = pytest.mark.faults

# A training of three workers with a checkpoint after every third step; what a rank does to itself
# after some step is in TROUBLE.
PROGRAM = """
import hashlib, os, sys
import numpy as np
import localsgd
from localsgd import every

folder, trouble = sys.argv[1:]
comm = localsgd.world()
params = np.zeros(50)
where = {"step": 0}
saves = localsgd.Checkpoints(
    folder, {"params": {"w": params}, "where": where}, comm, when=every(3)
)
step = saves.load() or 0
start = os.environ.get("LOCALSGD_RESTART")
if comm.rank == 0:
    print(f"start {start} begins after step {step}", flush=True)
comm.barrier()
while step < 10:
    gradient = np.sin(np.arange(50) * (comm.rank + 1.0) + step)
    comm.allreduce(gradient, "mean")
    params += gradient
    step += 1
    exec(trouble)
    saves.after(step)
saves.close()
if comm.rank == 0:
    print("ends with", hashlib.sha256(params).hexdigest(), flush=True)
"""
KILLED = "if (comm.rank, step, start) == (1, 8, '0'): saves.wait(); os.kill(os.getpid(), 9)"
RAISES = "if (comm.rank, step) == (1, 5): saves.wait(); raise KeyError('no such batch')"


def job(
    tmp_path: Path, folder: str, trouble: str, *options: str, python: str | None = None
) -> tuple[int, str]:
    """Exit code and output of a run that goes on from what is in a folder."""
    path = tmp_path / "job.py"
    path.write_text(PROGRAM)
    words = ["run", "-n", "3", *options, str(path), str(tmp_path / folder), trouble]
    ended = run(*words, python=python)
    return ended.returncode, ended.stdout + ended.stderr


def starts(output: str) -> list[tuple[int, int]]:
    """Of every start its number, and the step that it went on from."""
    found = re.findall(r"start (\d+) begins after step (\d+)", output)
    return [(int(number), int(step)) for number, step in found]


def digest_in(output: str) -> str:
    found = re.search(r"ends with (\w+)", output)
    assert found, output
    return found[1]


@pytest.mark.parametrize("library", ["openmpi", "mpich"])
def test_a_job_whose_rank_is_killed_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, library: str
) -> None:
    python = interpreter(library)
    code, whole = job(tmp_path, "whole", "", python=python)
    assert code == 0, whole
    code, output = job(tmp_path, "killed", KILLED, "--restarts", "2", python=python)
    assert code == 0, output
    assert digest_in(output) == digest_in(whole)
    assert starts(output) == [(0, 0), (1, 6)]
    [line] = re.findall(r"localsgd: (.*started again.*)", output)
    # By mpirun, of which MPICH's does not know the rank and may lose what was said just before, or
    # by a neighbour, whoever is first.
    assert re.fullmatch(
        r"((rank 1|a rank) on \S+ was ended by SIGKILL|rank 1 died) \(exit code \d+\): "
        "started again, 1 of 2, from (step 6|step 3|its newest checkpoint), 3 ranks",
        line,
    )


def test_a_job_is_started_again_no_more_often_than_it_may_be(tmp_path: Path) -> None:
    always = "if (comm.rank, step % 3) == (1, 2): saves.wait(); os.kill(os.getpid(), 9)"
    further = always.replace("== (1, 2)", "== (1, 2) and step > 3 * int(start)")
    code, output = job(tmp_path, "killed", further, "--restarts", "2")
    assert code == 128 + signal.SIGKILL
    assert starts(output) == [(0, 0), (1, 0), (2, 3)]
    assert "not started again: it was, 2 of 2 times" in output


def test_a_job_that_fails_twice_without_a_new_checkpoint_is_given_up(tmp_path: Path) -> None:
    """The first start has saved step 3; the next two fail where it did."""
    code, output = job(tmp_path, "failed", RAISES, "--restarts", "9")
    assert code == 1
    assert starts(output) == [(0, 0), (1, 3), (2, 3)]
    assert "rank 1 raised (exit code 1): not started again: 2 times in a row it saved" in output
    assert "KeyError: 'no such batch'" in output


def test_without_restarts_a_job_is_started_once_and_not_told_otherwise(tmp_path: Path) -> None:
    code, output = job(tmp_path, "failed", RAISES)
    assert code == 1
    assert "start None begins after step 0" in output
    assert "started again" not in output


@pytest.mark.parametrize(
    ("code", "reason"),
    [(2, "exit code 2 says that its arguments are wrong"), (75, "it was told to stop")],
)
def test_ends_that_another_start_would_not_change_are_final(
    tmp_path: Path, code: int, reason: str
) -> None:
    found, output = job(tmp_path, "ended", f"sys.exit({code})", "--restarts", "3")
    assert found == code
    assert starts(output) == [(0, 0)]
    assert f"not started again: {reason}" in output


def test_a_job_whose_time_is_over_is_not_started_again(tmp_path: Path) -> None:
    waits = "import threading; threading.Event().wait()"
    code, output = job(tmp_path, "ended", waits, "--restarts", "3", "--timeout-s", "5")
    assert code == 124
    assert len(starts(output)) <= 1 and "started again" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_job_that_is_told_to_end_is_not_started_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "job.py"
    path.write_text(PROGRAM)
    waits = "import threading; threading.Event().wait()"
    words = ["run", "-n", "3", "--restarts", "3", str(path), str(tmp_path / "ended"), waits]
    with started(*words, errors=subprocess.STDOUT) as launcher:
        assert launcher.stdout is not None
        assert any(line == "start 0 begins after step 0\n" for line in launcher.stdout)
        launcher.send_signal(number)
        assert launcher.wait(LIMIT_S) == 128 + number
        assert "start" not in launcher.stdout.read()


def test_what_the_ranks_say_arrives_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text("import os; os.write(2, b'\\xff half a line'); os.write(1, b'x' * 100_000)")
    ended = run("run", "-n", "1", "--restarts", "1", str(path), text=False)
    assert (ended.returncode, ended.stdout) == (0, b"x" * 100_000)
    assert ended.stderr == b"\xff half a line"
