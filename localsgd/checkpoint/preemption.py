"""Was this process told to stop: by a batch system that wants the machine back, or by a person.

A signal comes at any moment and to any rank. It is only taken note of; training goes on to a step
after which all ranks look, and there they save and end together.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

from localsgd.comm.contract import Communicator

# EX_TEMPFAIL of sysexits.h: it failed now, and is to be tried again.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def require_signals() -> None:
    """Raises ValueError outside of the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("preemption must be None outside of the main thread, got a schedule")


class Preempted(SystemExit):
    """Ends the program with exit code 75, after everything was saved.

    Attributes:
        step: the step of the checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step


class Notice:
    """Takes note of the first ``SIGTERM`` or ``SIGUSR1``; a second one does what it did before."""

    def __init__(self) -> None:
        self._name = ""
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}

    def told_any(self, comm: Communicator) -> bool:
        """Whether a rank was told to stop. Collective."""
        told = {rank: name for rank, name in enumerate(comm.collect(self._name)) if name}
        if told and comm.rank == 0:
            words = ", ".join(f"rank {rank} by {name}" for rank, name in told.items())
            print(f"localsgd: told to stop ({words}): saving", file=sys.stderr, flush=True)
        return bool(told)

    def forget(self) -> None:
        """Leaves signals to whoever had them before."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._take:
                signal.signal(number, handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        self.forget()
