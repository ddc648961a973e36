"""One start of a job: to its end, or until a host is lost; nothing of it is left behind."""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localsgd.cli.account import Account
from localsgd.cli.host_watch import HostWatch
from localsgd.cli.launcher import Job
from localsgd.cli.leftovers import Leftovers, remove_folder
from localsgd.cli.overheard import Overheard
from localsgd.cli.processes import descendants, dying_with_parent, kill_descendants

CANNOT_START = 127
TIMED_OUT = 124
# What follows a signal that has not ended the job after so many seconds. MPICH leaves it to the
# ranks to obey SIGTERM; after SIGINT mpirun of either library kills them.
_GRACE_S = 10.0
_LAST_GRACE_S = 2.0
# Where a host is lost, mpirun waits for its daemon for ever.
_GRACE_WITHOUT_HOST_S = 2.0
_PAUSE_S = 0.05
# How long hosts may take to clear up after a job that a person or the clock has ended.
_CLEARING_S = 5.0
# How long it may take until the other host reckons with the age of the job, which grows meanwhile.
_REACHING_S = 10.0


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        code: the exit code, of which a negative one says the signal that ended it.
        lost: the hosts that do not answer.
        reason: who was lost, as far as anybody has said it.
        saved: the step of the newest checkpoint that is known; -1 if none is.
        for_good: whether a person, or the clock, has ended it.
    """

    code: int
    lost: Sequence[str] = ()
    reason: str = ""
    saved: int = -1
    for_good: bool = False


class Attempt:
    """A job that runs.

    Args:
        folder: for its shared segments, where it has one of its own.
        mark: its ``LOCALSGD_JOB``.
        watch: of its hosts, if it has others than this.
        overheard: hears what it says, if somebody must.
        account: tells the errors that ranks write down, if they do; needs ``overheard``.
    """

    def __init__(
        self,
        job: Job,
        folder: Path | None,
        mark: str,
        watch: HostWatch | None,
        overheard: Overheard | None,
        account: Account | None = None,
    ) -> None:
        self._job, self._folder, self._mark = job, folder, mark
        self._watch, self._overheard, self._account = watch, overheard, account
        self._process: subprocess.Popen[bytes] | None = None
        self._begin_s = time.monotonic()

    def send(self, number: int) -> None:
        """Sends the job a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def run(self, received: Sequence[int], end_s: float, timeout_s: float | None) -> Ended:
        """Starts the job and waits for its end.

        Args:
            received: the signals so far that ask for the end, which grows meanwhile.
            end_s: when its time is over, by the monotonic clock.
            timeout_s: what the user was promised.
        """
        leftovers, environment = Leftovers(self._job.environment), dict(self._job.environment)
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            environment[self._job.segments] = str(self._folder)
        heard = self._overheard
        try:
            process = subprocess.Popen(
                self._job.command,
                env=environment,
                stdout=None if heard is None else heard.output,
                stderr=None if heard is None else heard.errors,
                preexec_fn=dying_with_parent(signal.SIGINT),
            )
        except OSError as error:
            print(f"localsgd: {self._job.command[0]}: {error.strerror}", file=sys.stderr)
            return Ended(CANNOT_START, for_good=True)
        finally:
            if heard is not None:
                heard.started()
        self._process = process
        timed_out, lost = self._wait(process, leftovers, received, end_s)
        if timed_out:
            print(f"localsgd: ended after {timeout_s:g} s", file=sys.stderr)
        if received or timed_out or lost:
            # One that came before the job had started has reached nobody.
            process.send_signal(received[-1] if received else signal.SIGTERM)
            self._end(process, leftovers, _GRACE_WITHOUT_HOST_S if lost else _GRACE_S)
        code, daemon = process.returncode, ""
        if heard is not None:
            heard.pass_on()
            daemon = heard.lost_daemon()
        for_good = timed_out or bool(received)
        if (lost or daemon) and code == 0:
            code = 1
        if code != 0:
            kill_descendants()
            lost = self._clear_hosts(process.pid, for_good) or lost
        if self._watch is not None:
            self._watch.stop()
        leftovers.remove(process.pid)
        remove_folder(self._folder)
        reason, saved = "", -1
        if heard is not None:
            heard.close()
            if self._account is not None:
                self._account.end(heard, failed=code != 0, wanted=for_good)
            reason, saved = daemon or heard.lost_rank(), heard.saved
        if timed_out:
            code = TIMED_OUT
        return Ended(-received[0] if received else code, lost, reason, saved, for_good)

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        leftovers: Leftovers,
        received: Sequence[int],
        end_s: float,
    ) -> tuple[bool, list[str]]:
        """Waits for the job to end, to be asked to, or to lose a host.

        Returns:
            Whether its time is over, and which hosts are lost.
        """
        while not received and process.poll() is None:
            if time.monotonic() >= end_s:
                return True, []
            lost = [] if self._watch is None else self._watch.look()
            if lost:
                return False, lost
            self._let_pass(leftovers)
        return False, []

    def _let_pass(self, leftovers: Leftovers) -> None:
        heard = self._overheard
        leftovers.wait(_PAUSE_S, descendants, () if heard is None else heard.descriptors)
        if heard is not None:
            heard.pass_on()
        if self._account is not None:
            self._account.look()

    def _end(self, process: subprocess.Popen[bytes], leftovers: Leftovers, grace_s: float) -> None:
        """Sees to it that a job that got a signal ends."""
        if not self._ends_within(grace_s, process, leftovers):
            process.send_signal(signal.SIGINT)
            if not self._ends_within(_LAST_GRACE_S, process, leftovers):
                process.kill()
                process.wait()

    def _ends_within(
        self, seconds: float, process: subprocess.Popen[bytes], leftovers: Leftovers
    ) -> bool:
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() >= deadline:
                return False
            self._let_pass(leftovers)
        return True

    def _clear_hosts(self, mpirun: int, for_good: bool) -> list[str]:
        """Ends what is left on other hosts; returns those that do not answer."""
        if self._watch is None:
            return []
        age_s = time.monotonic() - self._begin_s + _REACHING_S
        daemon = f"prterun-{socket.gethostname()}-{mpirun}"
        sweep = str(Path(__file__).with_name("sweep.py"))
        command = [sys.executable, sweep, self._mark, daemon, f"{age_s:.1f}"]
        return self._watch.clean_up(command, _CLEARING_S if for_good else math.inf)
