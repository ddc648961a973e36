"""What a job says on standard error that the launcher must know: it goes through here, unchanged.

Nothing else comes from every rank of every host by itself, and mpirun says only there which process
was killed, and that it has lost a host; Open MPI's exit code is then 0.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress

_SAVED = re.compile(r"localsgd: saved step (\d+)")
_RAISED = re.compile(r"rank (\d+) raised:")
_DIED = re.compile(r"RankFailure: rank (\d+) \(process \d+\) has died")
# Wrapped by mpirun, wherever a line is full.
_KILLED = re.compile(
    r"process rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)"
    r"|RANK (\d+) PID \d+ RUNNING AT (\S+) = EXIT CODE: (\d+)"
)
_KILLED_UNNAMED = re.compile(r"= PID \d+ RUNNING AT (\S+) = EXIT CODE: (\d+)")
_LOST_DAEMON = re.compile(
    r"lost communication with a remote daemon.{,200}?Remote daemon: \S+ on node (\S+)"
    r"|A daemon failed to report back.{,600}?Remote host: (\S+)"
)
_REMEMBERED = 1 << 16


class Overheard:
    """The job's standard error on its way to that of this process.

    Attributes:
        file: what the job is given for standard error, until it has started.
        descriptor: can be read when something was said, or nobody can say anything any more.
        saved: the step of the newest checkpoint that was said to be complete; -1 if none was.
    """

    def __init__(self) -> None:
        self.descriptor, self.file = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._said = ""
        self.saved = -1

    def started(self) -> None:
        """The job has its end of the pipe."""
        os.close(self.file)

    def pass_on(self) -> bool:
        """Passes on what was said; returns whether more may come. Does not wait."""
        while True:
            try:
                said = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not said:
                return False
            with suppress(OSError):
                sys.stderr.buffer.write(said)
                sys.stderr.flush()
            self._said = (self._said + said.decode(errors="replace"))[-_REMEMBERED:]
            for step in _SAVED.findall(self._said):
                self.saved = max(self.saved, int(step))

    def close(self) -> None:
        """Passes on what was said, now that nobody says more."""
        self.pass_on()
        os.close(self.descriptor)

    def lost_daemon(self) -> str:
        """The host whose launch daemon mpirun has lost; empty if it has lost none."""
        found = _LOST_DAEMON.search(" ".join(self._said.split()))
        return (found[1] or found[2]) if found else ""

    def lost_rank(self) -> str:
        """Which rank ended the job, in words; empty if nobody said it."""
        text = " ".join(self._said.split())
        if found := _KILLED.search(text):
            rank, host, number = (found[i] or found[i + 3] for i in (1, 2, 3))
            return f"rank {rank} on {host} was ended by {_signal(int(number))}"
        if found := _KILLED_UNNAMED.search(text):
            return f"a rank on {found[1]} was ended by {_signal(int(found[2]))}"
        if found := _DIED.search(text):
            return f"rank {found[1]} died"
        if found := _RAISED.search(text):
            return f"rank {found[1]} raised"
        return ""


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit code {number}"
