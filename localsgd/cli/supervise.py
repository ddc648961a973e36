"""Runs a job to its end: passes signals on, leaves no process and no file of the job behind.

Three processes, each of which the next survives: the command, which the user sees and may kill; a
guard, which starts mpirun and clears up after it; and mpirun.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from localsgd.cli.launcher import Job
from localsgd.cli.leftovers import Leftovers, own_folder, remove_folder
from localsgd.cli.processes import (
    adopt_orphans,
    descendants,
    dying_with_parent,
    kill_descendants,
)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
TIMED_OUT = 124
CANNOT_START = 127
# What follows a signal that has not ended the job after so many seconds. MPICH leaves it to the
# ranks to obey SIGTERM; after SIGINT mpirun of either library kills them.
_GRACE_S = 10.0
_LAST_GRACE_S = 2.0
_PAUSE_S = 0.05


def run_job(job: Job, timeout_s: float | None = None) -> int:
    """The exit code of the job: the ranks', 128 + n after signal n, 124 after the timeout."""
    adopt_orphans()
    prepare = dying_with_parent(signal.SIGTERM)
    # Known to both, since either may be killed.
    folder = own_folder() if job.segments else None
    guard = os.fork()
    if guard == 0:
        prepare()
        # A session of its own, or the terminal would send Ctrl-C twice.
        os.setsid()
        os._exit(_guarded(job, folder, timeout_s))
    with _passing_on(lambda number: os.kill(guard, number)):
        code = os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])
    if code != 0:
        kill_descendants()
    remove_folder(folder)
    return _as_shells_do(code)


def _guarded(job: Job, folder: Path | None, timeout_s: float | None) -> int:
    """The exit code of the job, after which nothing of it is left."""
    adopt_orphans()
    leftovers, environment = Leftovers(job.environment), dict(job.environment)
    if folder is not None:
        environment[job.segments] = str(folder)
    try:
        process = subprocess.Popen(
            job.command, env=environment, preexec_fn=dying_with_parent(signal.SIGINT)
        )
    except OSError as error:
        print(f"localsgd: {job.command[0]}: {error.strerror}", file=sys.stderr)
        return CANNOT_START
    with _passing_on(process.send_signal) as received:
        timed_out = _wait(process, leftovers, received, timeout_s)
        if received or timed_out:
            _end(process, leftovers)
        if process.returncode != 0:
            kill_descendants()
        leftovers.remove(process.pid)
        remove_folder(folder)
    if timed_out:
        return TIMED_OUT
    return _as_shells_do(-received[0] if received else process.returncode)


def _as_shells_do(code: int) -> int:
    """The exit code for a process, of which a negative one says the signal that ended it."""
    return code if code >= 0 else 128 - code


def _wait(
    process: subprocess.Popen[bytes],
    leftovers: Leftovers,
    received: list[int],
    timeout_s: float | None,
) -> bool:
    """Waits for the job to end or to be asked to; returns whether its time is over."""
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while not received and process.poll() is None:
        if time.monotonic() >= deadline:
            print(f"localsgd: ended after {timeout_s:g} s", file=sys.stderr)
            process.terminate()
            return True
        leftovers.wait(_PAUSE_S, descendants)
    return False


def _end(process: subprocess.Popen[bytes], leftovers: Leftovers) -> None:
    """Sees to it that a job that got a signal ends."""
    if not _ends_within(_GRACE_S, process, leftovers):
        process.send_signal(signal.SIGINT)
        if not _ends_within(_LAST_GRACE_S, process, leftovers):
            process.kill()
            process.wait()


def _ends_within(seconds: float, process: subprocess.Popen[bytes], leftovers: Leftovers) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() >= deadline:
            return False
        leftovers.wait(_PAUSE_S, descendants)
    return True


@contextmanager
def _passing_on(send: Callable[[int], None]) -> Iterator[list[int]]:
    """Passes signals on; gives the list of those so far that ask for the end."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if number in ENDING:
            received.append(number)
        send(number)

    # ``nohup`` has it ignored.
    unwanted = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heeded = [number for number in PASSED_ON if not (unwanted and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
