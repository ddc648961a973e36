"""Runs a job to its end: passes signals on, leaves no process and no file of the job behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from localsgd.cli.launcher import Job
from localsgd.cli.leftovers import without_leftovers

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TIMED_OUT = 124
_GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def run_job(job: Job, timeout_s: float | None = None) -> int:
    """The exit code of the job: the ranks', 128 + n after signal n, 124 after the timeout."""
    with without_leftovers(), _session_folder(job) as environment:
        process = subprocess.Popen(
            job.command,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        with _forwarding(process):
            code = _wait(process, timeout_s)
    return 128 - code if code < 0 else code


def _wait(process: subprocess.Popen[bytes], timeout_s: float | None) -> int:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        print(f"localsgd: ended after {timeout_s:g} s", file=sys.stderr)
        process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return TIMED_OUT


@contextmanager
def _session_folder(job: Job) -> Iterator[dict[str, str]]:
    """The job's environment, with a folder for its session files that is removed at the end."""
    environment = dict(job.environment)
    if job.sessions is None:
        yield environment
        return
    # A short path: sockets in it must stay below 108 characters.
    folder = tempfile.mkdtemp(prefix="localsgd-")
    try:
        yield {**environment, job.sessions: folder}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Passes signals on to the job, whose end then ends this process."""

    def forward(number: int, _: FrameType | None) -> None:
        if process.poll() is None:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """Makes the kernel end the job should this process be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
