"""How a rank waits for others: politely, with a deadline, and able to say for whom.

Everything that can block goes through ``Waiter.until``. It spins with ``sched_yield`` at first,
since most waits are shorter than a sleep, looks now and then for peers that can never come, says
once who is missing, and raises when the deadline has passed. Behind a computation it sleeps at
once, and longer: there every spin takes time from what the round is to hide behind.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from ..errors import RankFailure, RankSilent, name_ranks

_SPINS, _NAP_S = 2_000, 50e-6
_SPINS_BEHIND, _NAP_BEHIND_S = 1, 500e-6
_CHECK_EVERY_S = 0.25
# The most that counts between two looks: no nap, nor a busy machine, keeps a rank from looking so
# long, so it was stopped, and perhaps the others, too, as a batch system suspends all of a job.
_LONGEST_STEP_S = 10.0

Clock = Callable[[], float]

# Whether this thread works beside one that computes.
BEHIND: ContextVar[bool] = ContextVar("BEHIND", default=False)


class Waiter:
    """Waits on behalf of one rank.

    Attributes:
        waited_s: seconds spent waiting so far.
    """

    def __init__(
        self,
        deadline_s: float,
        check: Callable[[Sequence[int]], None],
        describe: Callable[[Sequence[int]], str],
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            deadline_s: how long a wait may last.
            check: raises if one of the given ranks can never come.
            describe: where the given ranks were last seen.
            clock: seconds.
        """
        if not deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0 seconds, got {deadline_s}")
        self.waited_s = 0.0
        self._deadline_s, self._check, self._describe = deadline_s, check, describe
        self._clock = clock

    def until(self, done: Callable[[], bool], missing: Callable[[], Sequence[int]]) -> None:
        """Returns once ``done()``; ``missing()`` are the ranks that keep it from being so."""
        if done():
            return
        begin, behind = self._clock(), BEHIND.get()
        try:
            for _ in range(_SPINS_BEHIND if behind else _SPINS):
                os.sched_yield()
                if done():
                    return
            self._wait_long(done, missing, begin, _NAP_BEHIND_S if behind else _NAP_S)
        finally:
            self.waited_s += self._clock() - begin

    def _wait_long(
        self,
        done: Callable[[], bool],
        missing: Callable[[], Sequence[int]],
        begin: float,
        nap_s: float,
    ) -> None:
        warn_at, next_check, warned = begin + min(30.0, self._deadline_s / 2), begin, False
        last = begin
        while not done():
            now = self._clock()
            stopped = max(now - last - _LONGEST_STEP_S, 0.0)
            begin, warn_at, last = begin + stopped, warn_at + stopped, now
            if now >= next_check:
                next_check = now + _CHECK_EVERY_S
                self._look(done, missing())
            absent = missing() if now >= warn_at else []
            if absent and not warned:
                warned = True
                print(self._report(absent, now - begin), file=sys.stderr, flush=True)
            if absent and now - begin >= self._deadline_s:
                raise RankSilent(self._report(absent, now - begin), absent)
            time.sleep(nap_s)

    def _look(self, done: Callable[[], bool], absent: Sequence[int]) -> None:
        """Raises if one of the ranks can never come, unless it came just before it ended."""
        if absent:
            try:
                self._check(absent)
            except RankFailure:
                if not done():
                    raise

    def _report(self, absent: Sequence[int], seconds: float) -> str:
        return (
            f"waited {seconds:.1f} s (deadline {self._deadline_s:g} s) for "
            f"{name_ranks(absent)}: {self._describe(absent)}"
        )
