"""A job from its start to its end: signals, and ranks that do not heed them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cli.jobs import LIMIT_S, ignoring, script, started, waiting_job


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_ends_the_job_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """The exit code is the one of a program that the signal ended, 128 + n."""
    with waiting_job(tmp_path) as job:
        job.launcher.send_signal(number)
        assert job.launcher.wait(LIMIT_S) == 128 + number
        assert job.all_end()


def test_a_hangup_that_is_ignored_ends_nothing(tmp_path: Path) -> None:
    """As under ``nohup``; of two signals the first would say how the job ended."""
    with ignoring(signal.SIGHUP), waiting_job(tmp_path) as job:
        job.launcher.send_signal(signal.SIGHUP)
        job.launcher.terminate()
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGTERM
        assert job.all_end()


def test_ranks_that_ignore_the_signal_end_all_the_same(tmp_path: Path) -> None:
    """MPICH's mpirun passes SIGTERM on, and would wait for such ranks for ever."""
    with waiting_job(tmp_path, "import signal; signal.signal(15, signal.SIG_IGN)\n") as job:
        job.launcher.terminate()
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGTERM
        assert job.all_end()


def test_killed_guard_leaves_no_process(tmp_path: Path) -> None:
    with waiting_job(tmp_path) as job:
        os.kill(job.guard, signal.SIGKILL)
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGKILL
        assert job.all_end()


def test_user_signal_reaches_the_ranks_and_ends_nothing(tmp_path: Path) -> None:
    # In every thread: MPI starts some, and they inherit this.
    before = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
    body = (
        "world.Barrier()\n"
        "os.write(1, b'ready\\n')\n"
        "signal.sigwait([signal.SIGUSR1])\n"
        "os.write(1, b'got it\\n')\n"
    )
    with started("run", "-n", "2", script(tmp_path, body, before)) as launcher:
        assert launcher.stdout is not None
        assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        launcher.send_signal(signal.SIGUSR1)
        assert launcher.communicate()[0] == "got it\n" * 2
        assert launcher.returncode == 0
