"""Runs a job to its end: passes signals on, leaves no process and no file of the job behind."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from localsgd.cli.launcher import Job, LaunchError
from localsgd.cli.leftovers import Leftovers
from localsgd.cli.processes import (
    adopt_orphans,
    descendants,
    dies_with_parent,
    kill_descendants,
)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
TIMED_OUT = 124
# What follows a signal that has not ended the job after so many seconds. MPICH leaves it to the
# ranks to obey SIGTERM; after SIGINT mpirun of either library kills them.
_GRACE_S = 10.0
_LAST_GRACE_S = 2.0
# How often to look at the job's files: often at first, or an early death would leave some.
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


def run_job(job: Job, timeout_s: float | None = None) -> int:
    """The exit code of the job: the ranks', 128 + n after signal n, 124 after the timeout.

    Raises:
        LaunchError: if the launcher cannot be executed.
    """
    adopt_orphans()
    leftovers = Leftovers(job.environment)
    try:
        process = subprocess.Popen(
            job.command,
            env=job.environment,
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
    except OSError as error:
        raise LaunchError(f"{job.command[0]} cannot be executed: {error.strerror}") from None
    received: list[int] = []
    with _passing_on(process, received):
        timed_out = _wait(process, leftovers, received, timeout_s)
        if received or timed_out:
            _end(process, leftovers)
        if process.returncode != 0:
            leftovers.look(descendants())
            kill_descendants()
        leftovers.remove(process.pid)
    if timed_out:
        return TIMED_OUT
    if received:
        return 128 + received[0]
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _wait(
    process: subprocess.Popen[bytes],
    leftovers: Leftovers,
    received: list[int],
    timeout_s: float | None,
) -> bool:
    """Waits for the job to end or to be asked to; returns whether its time is over."""
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    pause = _FIRST_PAUSE_S
    while not received:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            print(f"localsgd: ended after {timeout_s:g} s", file=sys.stderr)
            process.terminate()
            return True
        if _ends_within(process, min(pause, remaining)):
            break
        leftovers.look(descendants())
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    return False


def _end(process: subprocess.Popen[bytes], leftovers: Leftovers) -> None:
    """Sees to it that a job that got a signal ends."""
    leftovers.look(descendants())
    if not _ends_within(process, _GRACE_S):
        leftovers.look(descendants())
        process.send_signal(signal.SIGINT)
        if not _ends_within(process, _LAST_GRACE_S):
            process.kill()
            process.wait()


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextmanager
def _passing_on(process: subprocess.Popen[bytes], received: list[int]) -> Iterator[None]:
    """Passes signals on to the job, and notes those that ask for its end."""

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        pass_on(number, frame)

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    handlers = {**dict.fromkeys(ENDING, note), **dict.fromkeys(PASSED_ON, pass_on)}
    previous = {number: signal.signal(number, handlers[number]) for number in handlers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
