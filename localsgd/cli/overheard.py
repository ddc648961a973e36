"""What a job says that the launcher must know: it goes through here, unchanged.

Nothing else comes from every rank of every host by itself, and mpirun says only there which process
was killed, and that it has lost a host; Open MPI's exit code is then 0. It says so on standard
error, MPICH on standard output. What MPI says of a failure can be held back until the job's end.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import deque
from contextlib import suppress
from typing import IO

from localsgd.cli.banners import Banners
from localsgd.cli.digest import Killed

_SAVED = re.compile(r"localsgd: saved step (\d+)")
_RAISED = re.compile(r"rank (\d+) raised:")
_DIED = re.compile(r"RankFailure: rank (\d+) \(process \d+\) has died")
# Wrapped by mpirun, wherever a line is full.
_KILLED = re.compile(r"process rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)")
# Of a process that has exited the last part is not there.
_KILLED_UNNAMED = re.compile(
    r"= PID \d+ RUNNING AT (\S+) = EXIT CODE: \d+ =.{,400}?EXIT STRING: .{,40}?\(signal (\d+)\)"
)
_LOST_DAEMON = re.compile(
    r"lost communication with a remote daemon.{,200}?Remote daemon: \S+ on node (\S+)"
    r"|A daemon failed to report back.{,600}?Remote host: (\S+)"
    r"|control_cb .{,80}?assert \(!closed\) failed"
)
_REMEMBERED, _LONGEST_LINE = 1 << 16, 100
_KEPT_BYTES = 1 << 20


class Overheard:
    """A job's words on their way to where this process's own go.

    Args:
        output: whether its standard output comes through here, too.
        banners: whether what MPI says of a failure is held back.

    Attributes:
        output: what the job is given for standard output, until it has started; None for what this
            process has.
        errors: the same for standard error.
        descriptors: can be read when something was said, or nobody can say anything any more.
        saved: the step of the newest checkpoint that was said to be complete; -1 if none was.
    """

    def __init__(self, output: bool, banners: bool = False) -> None:
        self._targets: dict[int, IO[bytes]] = {}
        self._banners: dict[int, Banners] | None = {} if banners else None
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self.output = self._pipe_to(sys.stdout.buffer) if output and sys.stdout else None
        self.errors = self._pipe_to(sys.stderr.buffer) if sys.stderr else None
        self.descriptors = tuple(self._targets)
        self._said = ""
        self.saved = -1

    def started(self) -> None:
        """The job has its ends of the pipes."""
        for descriptor in (self.output, self.errors):
            if descriptor is not None:
                os.close(descriptor)

    def pass_on(self) -> None:
        """Passes on what was said. Does not wait."""
        for descriptor in self.descriptors:
            # Nobody says anything now.
            with suppress(BlockingIOError):
                while said := os.read(descriptor, 1 << 16):
                    self._hear(said)
                    if self._banners is not None:
                        said = self._banners[descriptor].sort(said)
                    self._pass_on(said, self._targets[descriptor])
                # All that could have are gone.
                self.descriptors = tuple(x for x in self.descriptors if x != descriptor)

    def close(self) -> None:
        """Passes on what was said, now that nobody says more."""
        self.pass_on()
        for descriptor in self._targets:
            os.close(descriptor)

    def _pipe_to(self, target: IO[bytes]) -> int:
        mine, theirs = os.pipe()
        os.set_blocking(mine, False)
        self._targets[mine] = target
        if self._banners is not None:
            self._banners[mine] = Banners()
        return theirs

    def _pass_on(self, said: bytes, target: IO[bytes]) -> None:
        # Who read it may be gone.
        with suppress(OSError):
            target.write(said)
            target.flush()

    def _hear(self, said: bytes) -> None:
        self._kept.append(said)
        self._kept_bytes += len(said)
        while self._kept_bytes - len(self._kept[0]) > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft())
        self.note(said.decode(errors="replace"))

    def note(self, text: str) -> None:
        """Takes something that was not said for heard."""
        self._said = (self._said + text)[-_REMEMBERED:]
        for step in _SAVED.findall(self._said[-len(text) - _LONGEST_LINE :]):
            self.saved = max(self.saved, int(step))

    @property
    def tail(self) -> bytes:
        """What was said, the last mebibyte at least."""
        return b"".join(self._kept)

    def let_banners_go(self, *, shown: bool) -> None:
        """Passes on what was held back, now that the job has ended.

        Args:
            shown: whether banners are, too.
        """
        for descriptor, banners in (self._banners or {}).items():
            said = banners.end()
            if shown:
                said = b"".join(banners.found) + said
            self._pass_on(said, self._targets[descriptor])

    def killed(self) -> Killed | None:
        """The process that mpirun says was ended by a signal, if it does."""
        text = " ".join(self._said.split())
        if found := _KILLED.search(text):
            return Killed(int(found[1]), found[2], _signal(int(found[3])))
        if found := _KILLED_UNNAMED.search(text):
            return Killed(None, found[1], _signal(int(found[2])))
        return None

    def lost_daemon(self) -> str:
        """Which launch daemon mpirun has lost, in words; empty if it has lost none."""
        found = _LOST_DAEMON.search(" ".join(self._said.split()))
        if not found:
            return ""
        host = found[1] or found[2]
        return f"mpirun lost its daemon on {host or 'another host'}"

    def lost_rank(self) -> str:
        """Which rank ended the job, in words; empty if nobody said it."""
        text = " ".join(self._said.split())
        if found := _KILLED.search(text):
            return f"rank {found[1]} on {found[2]} was ended by {_signal(int(found[3]))}"
        if found := _DIED.search(text):
            return f"rank {found[1]} died"
        if found := _RAISED.search(text):
            return f"rank {found[1]} raised"
        if found := _KILLED_UNNAMED.search(text):
            # Of those that MPICH has killed then it may name another one.
            return f"a rank on {found[1]} was ended by {_signal(int(found[2]))}"
        return ""


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
