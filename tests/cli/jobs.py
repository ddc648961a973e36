"""Jobs of the command ``localsgd`` for its tests, with this environment's MPI."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 60
SHARED = Path("/dev/shm")
COMMAND = [sys.executable, "-m", "localsgd.cli"]


def run(
    *arguments: str,
    environment: dict[str, str] | None = None,
    python: str | None = None,
    text: bool = True,
) -> subprocess.CompletedProcess[Any]:
    return subprocess.run(
        [python or COMMAND[0], *COMMAND[1:], *arguments],
        capture_output=True,
        text=text,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def script(tmp_path: Path, body: str, before: str = "") -> str:
    """A program for the ranks; ``before`` is what it does before MPI starts."""
    path = tmp_path / "job.py"
    head = "from mpi4py import MPI\nworld = MPI.COMM_WORLD\n"
    path.write_text(f"import json, os, sys\n{before}{head}{body}")
    return str(path)


def environment_of_a_rank(
    tmp_path: Path, *options: str, environment: dict[str, str] | None = None
) -> dict[str, str]:
    body = "os.write(1, json.dumps(dict(os.environ)).encode() * (world.rank == 0))"
    ended = run("run", "-n", "2", *options, script(tmp_path, body), environment=environment)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


@contextmanager
def ignoring(number: signal.Signals) -> Iterator[None]:
    """Processes that are started meanwhile ignore a signal."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@dataclass
class WaitingJob:
    """Two ranks that wait for ever.

    Attributes:
        launcher: the command.
        guard: the process that the command started.
        mpirun: the process that the guard started.
        ranks: the ranks' processes.
        handles: a descriptor for each of guard and ranks, readable once it has ended.
        temporary: the job's folder for temporary files.
        segments: what the ranks have mapped of shared memory.
    """

    launcher: subprocess.Popen[str]
    guard: int
    mpirun: int
    ranks: list[int]
    handles: list[int]
    temporary: Path
    segments: set[Path]

    def all_end(self) -> bool:
        """Whether they do, within the limit."""
        return all(select.select([handle], [], [], LIMIT_S)[0] for handle in self.handles)

    def files_left(self) -> list[Path]:
        """What is still there of the job."""
        assert self.segments, "the job had no segments"
        left = [path for path in self.segments if path.exists()]
        # Hydra's description of the machine bears no name of the job, and stays if it is killed.
        return left + [x for x in self.temporary.iterdir() if "hwloc" not in x.name]


@contextmanager
def waiting_job(tmp_path: Path, before: str = "") -> Iterator[WaitingJob]:
    body = (
        f"{before}world.Barrier()\n"
        "os.write(1, f'{os.getpid()}\\n'.encode())\n"
        "import threading; threading.Event().wait()"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = ["run", "-n", "2", script(tmp_path, body)]
    with started(*command, environment={"TMPDIR": str(temporary)}) as launcher:
        assert launcher.stdout is not None
        ranks = [int(launcher.stdout.readline()) for _ in range(2)]
        guard = child_above(ranks[0], launcher.pid)
        mpirun = child_above(ranks[0], guard)
        segments = {path for path in SHARED.iterdir() for pid in ranks if maps(pid, path)}
        handles = [os.pidfd_open(pid) for pid in (guard, *ranks)]
        let_look(guard)
        try:
            yield WaitingJob(launcher, guard, mpirun, ranks, handles, temporary, segments)
        finally:
            for handle in handles:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)
            for path in segments:
                path.unlink(missing_ok=True)


def maps(pid: int, path: Path) -> bool:
    return str(path) in Path(f"/proc/{pid}/maps").read_text()


def let_look(guard: int) -> None:
    """Returns once the guard has been through its loop, in which it looks for new segments."""
    deadline, first = time.monotonic() + LIMIT_S, pauses(guard)
    while pauses(guard) < first + 2:
        assert time.monotonic() < deadline, "the guard does not look any more"


def pauses(pid: int) -> int:
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


@contextmanager
def started(
    *arguments: str, environment: dict[str, str] | None = None, errors: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command, which is killed at the end or after the limit.

    Args:
        errors: where its standard error goes, as for ``Popen``.
    """
    launcher = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    watchdog = threading.Timer(LIMIT_S, launcher.kill)
    watchdog.start()
    try:
        yield launcher
    finally:
        watchdog.cancel()
        launcher.kill()
        launcher.wait()
        assert launcher.stdout is not None
        launcher.stdout.close()


def child_above(pid: int, top: int) -> int:
    """The ancestor of a process that is a child of ``top``."""
    while True:
        stat = Path(f"/proc/{pid}/stat").read_text()
        parent = int(stat.rpartition(")")[2].split()[1])
        if parent == top:
            return pid
        pid = parent
