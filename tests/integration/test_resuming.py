"""Jobs that are killed, or told to stop, and started again: they end as if nothing had been."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

LIMIT_S = 100

# A DiLoCo of three workers; what a rank does to itself after some step is in TROUBLE.
PROGRAM = """
import hashlib, os, signal, sys, threading
import numpy as np
import localsgd
from localsgd import every

folder, trouble = sys.argv[1:]
comm = localsgd.world(deadline_s=30)
arena = localsgd.Arena({"w": np.zeros(50), "b": np.zeros(7, np.float64)}, comm)
training = localsgd.DiLoCo(localsgd.optim.AdamW(arena, lr=0.05), 4, comm=comm)
noise = np.random.default_rng(comm.rank)
parts = {"params": arena, "training": training, "noise": noise}
saves = localsgd.Checkpoints(folder, parts, comm, when=every(3), preemption=every(2))
step = saves.load() or 0
if comm.rank == 0:
    print("begins after step", step, flush=True)
while step < 20:
    arena.grad.flat[...] = arena.flat - comm.rank + noise.normal(size=57)
    training.step()
    step += 1
    exec(trouble)
    saves.after(step)
saves.close()
digest = hashlib.sha256(arena.flat).hexdigest()
assert comm.collect(digest) == [digest] * comm.size
if comm.rank == 0:
    print("ends with", digest, flush=True)
"""


def job(tmp_path: Path, folder: str, trouble: str, layout: str = "2+1") -> tuple[int, str]:
    """Exit code and output of a run that goes on from what is in a folder."""
    script = tmp_path / "job.py"
    script.write_text(PROGRAM)
    ranks = str(sum(map(int, layout.split("+"))))
    command = [sys.executable, "-m", "localsgd.cli", "run", "-n", ranks, "--layout", layout]
    ended = subprocess.run(
        [*command, str(script), str(tmp_path / folder), trouble],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def digest_in(output: str) -> str:
    found = re.search(r"ends with (\w+)", output)
    assert found, output
    return found[1]


def test_a_job_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    """In the middle of a period, and while a checkpoint is being written."""
    code, output = job(tmp_path, "whole", "")
    assert code == 0, output
    whole = digest_in(output)
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    begun = []
    for rank, step in ((1, 5), (2, 8), (0, 11)):
        there = f"if (comm.rank, step) == ({rank}, {step}):\n    saves.wait()\n    {kill}"
        code, output = job(tmp_path, "killed", there)
        assert code != 0 and "ends with" not in output
        begun.append(int(re.findall(r"begins after step (\d+)", output)[0]))
    behind = f"if (comm.rank, step) == (1, 15): threading.Timer(0.0005, lambda: {kill}).start()"
    code, output = job(tmp_path, "killed", behind)
    assert code != 0
    code, output = job(tmp_path, "killed", "")
    assert code == 0, output
    assert digest_in(output) == whole
    assert begun == [0, 3, 6]


def test_more_processes_and_fewer_go_on_from_one_checkpoint(tmp_path: Path) -> None:
    """All of them alike to the bit, which the program itself checks at its end."""
    stop = "if step == 10: saves.wait(); comm.barrier(); os._exit(3)"
    code, output = job(tmp_path, "saves", stop)
    assert code != 0 and "ends with" not in output
    for ranks, layout in ((2, "1+1"), (4, "2+2"), (3, "1+2")):
        shutil.copytree(tmp_path / "saves", tmp_path / layout)
        code, output = job(tmp_path, layout, "", layout)
        assert (
            f"was saved by 3 ranks on hosts 2+1, {ranks} go on with it on hosts {layout}" in output
        )
        assert "begins after step 9" in output
        assert code == 0 and "ends with" in output, output


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_job_that_is_told_to_stop_saves_and_goes_on_later(tmp_path: Path, name: str) -> None:
    """The rank that is told stands at a step after which nobody looks and nothing is saved."""
    code, output = job(tmp_path, "whole", "")
    assert code == 0, output
    tell = f"if (comm.rank, step) == (2, 7): os.kill(os.getpid(), signal.{name})"
    code, first = job(tmp_path, "told", tell)
    assert code == 75, first
    assert f"told to stop (rank 2 by {name}): saving" in first
    code, second = job(tmp_path, "told", "")
    assert code == 0 and "begins after step 8" in second
    assert digest_in(second) == digest_in(output)


def test_the_signals_are_those_that_are_documented() -> None:
    from localsgd.checkpoint import preemption

    assert preemption.SIGNALS == (signal.SIGTERM, signal.SIGUSR1)
    assert preemption.EXIT_CODE == 75
