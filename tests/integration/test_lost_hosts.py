"""Hosts that are lost while a job runs: it is ended, and started again on those that are left."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.on_hosts import ROOT, hosts_up, interpreter
from testbed import Hosts
from testbed.enter import AGENT, TEMPORARY
from testbed.launch import settings

pytestmark = pytest.mark.faults

LIBRARIES = ["openmpi", "mpich"]
DEADLINE_S, LIMIT_S = 10.0, 150.0

# A training whose checkpoints any number of ranks can take over; all workers have the same
# gradient, so that the end does not depend on how many they are. It waits after step 8 of its first
# start until it is ended, so that the host is lost before step 9.
PROGRAM = """
import hashlib, json, os, sys
from pathlib import Path
import numpy as np
import localsgd

saved, start = Path(sys.argv[1]), os.environ["LOCALSGD_RESTART"]
comm = localsgd.world()
params, step = np.zeros(50), 0
if saved.exists():
    step, values = json.loads(saved.read_text())
    params[:] = values
comm.barrier()
if comm.rank == 0:
    print(f"start {start} begins after step {step} on {comm.topology}", flush=True)
while step < 12:
    gradient = np.full(50, 1.0 + step)
    comm.allreduce(gradient, "mean")
    params += gradient
    step += 1
    if comm.rank == 0 and step % 3 == 0:
        unfinished = saved.with_suffix(".unfinished")
        unfinished.write_text(json.dumps([step, list(params)]))
        unfinished.rename(saved)
        print(f"localsgd: saved step {step}", file=sys.stderr, flush=True)
    if (step, start) == (8, "0"):
        comm.barrier()
        if comm.rank == 0:
            print("strike", flush=True)
        # All wait for one another, as in a round that a lost host takes no part in.
        while True:
            comm.barrier()
if comm.rank == 0:
    print("ends with", params[0], flush=True)
"""


@dataclass
class Seen:
    """What became of a job of which a host was lost.

    Attributes:
        code: its exit code.
        output: all that it said.
        left: processes and files of it that are on the hosts that are up, at the end.
        seconds: from the loss to the end.
    """

    code: int
    output: str
    left: list[str]
    seconds: float

    @property
    def starts(self) -> list[str]:
        return re.findall(r"start \d+ begins after step \d+ on \S+", self.output)

    @property
    def told(self) -> list[str]:
        return re.findall(r"localsgd: (.*start.*)", self.output)


def job(
    hosts: Hosts, library: str, tmp_path: Path, strike: Callable[[], None], *options: str
) -> Seen:
    """Runs a job on three hosts, of which one is struck after step 8."""
    path = tmp_path / "job.py"
    path.write_text(PROGRAM)
    words = ["-m", "localsgd.cli", "run", "-n", "6", "--hosts", "h0:2,h1:2,h2:2"]
    words += ["--host-deadline-s", str(DEADLINE_S), *options]
    agent = {
        "PRTE_MCA_plm_ssh_agent": AGENT,
        "HYDRA_LAUNCHER_EXEC": AGENT,
        "LOCALSGD_RESTART": "0",
    }
    process = subprocess.Popen(
        hosts.command_on(0, [interpreter(library), *words, str(path), str(tmp_path / "saved")]),
        env={**os.environ, **settings(library), **agent},  # type: ignore[arg-type]  # by name
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
    )
    watchdog = threading.Timer(LIMIT_S, process.terminate)
    watchdog.start()
    said, begin = [], time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if line == "strike\n":
            begin = time.monotonic()
            strike()
    code, seconds = process.wait(), time.monotonic() - begin
    watchdog.cancel()
    process.stdout.close()
    look = (
        f"ls -d /dev/shm/*_segment* /dev/shm/mpich_* {TEMPORARY}/*; pgrep -af 'job.py|prted|hydra'"
    )
    left = hosts.run_on(0, ["sh", "-c", look], timeout_s=20).stdout.splitlines()
    left = [line for line in left if "pgrep" not in line and "hwloc" not in line]
    return Seen(code, "".join(said), left, seconds)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_host_whose_processes_are_killed_is_used_again(tmp_path: Path, library: str) -> None:
    """12 steps, the gradient of step k being k: 78."""
    with hosts_up([2, 2, 2]) as hosts:
        seen = job(hosts, library, tmp_path, lambda: hosts.kill(1), "--restarts", "1")
    assert seen.code == 0, seen.output
    assert seen.starts == [
        "start 0 begins after step 0 on 2+2+2",
        "start 1 begins after step 6 on 2+2+2",
    ]
    assert len(seen.told) == 1 and seen.told[0].endswith("6 ranks on h0:2,h1:2,h2:2"), seen.told
    assert "ends with 78.0" in seen.output
    assert seen.left == []


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("killed", [False, True], ids=["cut", "cut and killed"])
def test_a_job_goes_on_without_a_host_that_is_lost(
    tmp_path: Path, library: str, killed: bool
) -> None:
    """Its link is cut, and nobody is told; its processes live on, or not."""

    def strike() -> None:
        hosts.cut(1)
        if killed:
            hosts.kill(1)

    with hosts_up([2, 2, 2]) as hosts:
        seen = job(hosts, library, tmp_path, strike, "--restarts", "1")
    assert seen.code == 0, seen.output
    assert seen.starts == [
        "start 0 begins after step 0 on 2+2+2",
        "start 1 begins after step 6 on 2+2",
    ]
    assert seen.told == [
        "lost host h1, which did not answer: started again, 1 of 1, from step 6, "
        "4 ranks on h0:2,h2:2"
    ]
    assert "ends with 78.0" in seen.output


def test_a_lost_host_ends_a_job_that_is_not_started_again(tmp_path: Path) -> None:
    """Within the deadline and what it takes to clear up, under the deadline of the ranks by far."""
    with hosts_up([2, 2, 2]) as hosts:
        seen = job(hosts, "openmpi", tmp_path, lambda: hosts.cut(1))
    assert seen.code != 0
    assert "localsgd: lost host h1, which did not answer\n" in seen.output
    assert len(seen.starts) == 1


def test_a_lost_daemon_is_a_failure_though_mpirun_says_0(tmp_path: Path) -> None:
    with hosts_up([2, 2, 2]) as hosts:
        seen = job(hosts, "openmpi", tmp_path, lambda: hosts.kill(1))
    assert seen.code == 1
    assert seen.left == []
