"""How a rank waits for others: politely, with a deadline, and able to say for whom.

Everything that can block goes through ``Waiter.until``. It spins with ``sched_yield`` at first,
since most waits are shorter than a sleep; those that are not are the business of ``_LongWait``,
which looks now and then for peers that can never come, says who is missing, at growing intervals,
and raises when the deadline has passed. Behind a computation a rank sleeps at once, and longer:
there every spin takes time from what the round is to hide behind.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from ..errors import RankFailure, RankSilent, name_ranks
from .lookout import Late, Lookout
from .patience import Patience, Usual

_SPINS, _NAP_S = 2_000, 50e-6
_SPINS_BEHIND, _NAP_BEHIND_S = 1, 500e-6
_LOOK_EVERY_S = 0.25
# When others are shown for whom a rank waits.
_SHOW_AFTER_S = 0.25
# How long before it gives up a rank asks once more, for what it says then to be true.
_ASK_BEFORE_S = 2.0
# The most that counts between two looks: no nap, nor a busy machine, keeps a rank from looking so
# long, so it was stopped, and perhaps the others, too, as a batch system suspends all of a job.
_LONGEST_STEP_S = 10.0
_MOST_LINES = 8

Clock = Callable[[], float]
Missing = Callable[[], Sequence[int]]
Pause = Callable[[Callable[[], bool]], bool]

# Whether this thread works beside one that computes.
BEHIND: ContextVar[bool] = ContextVar("BEHIND", default=False)


class Waiter:
    """Waits on behalf of one rank.

    Attributes:
        waited_s: seconds spent waiting so far.
    """

    def __init__(
        self,
        patience: Patience,
        lookout: Lookout,
        clock: Clock = time.monotonic,
        pause: Pause | None = None,
    ) -> None:
        """
        Args:
            patience: how long a wait may last.
            lookout: what can be known of the others.
            clock: seconds.
            pause: waits in place of naps, as ``Pace`` says; then a wait has no deadline and lasts
                until nobody can go on.
        """
        self.waited_s = 0.0
        self._patience, self._lookout, self._clock = patience, lookout, clock
        self._usual, self._pause = Usual(), pause

    @property
    def deadline_s(self) -> float:
        """How long a wait that begins now may last."""
        return self._patience.fail_after_s(self._usual.seconds(self._clock()))

    def until(self, done: Callable[[], bool], missing: Missing) -> None:
        """Returns once ``done()``; ``missing()`` are the ranks that keep it from being so."""
        if done():
            return
        begin, behind = self._clock(), BEHIND.get()
        try:
            if self._pause is not None:
                self._let_others_go_on(self._pause, done, missing)
                return
            for _ in range(_SPINS_BEHIND if behind else _SPINS):
                os.sched_yield()
                if done():
                    return
            self._wait_long(done, missing, begin, _NAP_BEHIND_S if behind else _NAP_S)
        finally:
            self.waited_s += self._clock() - begin

    def _let_others_go_on(self, pause: Pause, done: Callable[[], bool], missing: Missing) -> None:
        while True:
            can_go_on = pause(done)
            if done():
                return
            absent = missing()
            self._lookout.check(absent)
            if not can_go_on:
                late = self._lookout.late(absent)
                words = "; ".join(_lines(late))
                raise RankSilent(f"nobody can go on{_where(late)}: {words}", late.ranks)

    def _wait_long(
        self, done: Callable[[], bool], missing: Missing, begin: float, nap_s: float
    ) -> None:
        self._usual.note(self._lookout.computed_s(), begin)
        usual_s = self._usual.seconds(begin)
        wait = _LongWait(self._patience, usual_s, self._lookout, missing, begin)
        try:
            while not done():
                wait.go_on(self._clock(), done)
                time.sleep(nap_s)
        finally:
            wait.hide()
        wait.end()
        # Who was as late again would be no surprise.
        self._usual.note(2 * wait.waited_s, wait.now)


class _LongWait:
    """One wait that is too long for spinning.

    Attributes:
        now: the time of the last look.
        waited_s: how long it had lasted then, without the time in which the process was stopped.
    """

    def __init__(
        self,
        patience: Patience,
        usual_s: float,
        lookout: Lookout,
        missing: Missing,
        begin: float,
    ) -> None:
        self.now, self.waited_s = begin, 0.0
        self._lookout, self._missing = lookout, missing
        self._fail_after_s = patience.fail_after_s(usual_s)
        self._ask_after_s = patience.say_after_s(usual_s)
        self._say_after_s: float | None = None
        self._look_at = self._since = begin
        self._shown = self._has_said = self._asked_last = False

    def go_on(self, now: float, done: Callable[[], bool]) -> None:
        """Does what is due.

        Raises:
            RankFailure: if a rank can never come; RankSilent if the deadline has passed.
        """
        self.waited_s += min(now - self.now, _LONGEST_STEP_S)
        self.now = now
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._look(done)
        if self.waited_s >= self._fail_after_s and (absent := self._missing()):
            late = self._lookout.late(absent)
            raise RankSilent(self._reason(late), late.ranks)
        if self.waited_s >= self._ask_after_s:
            self._ask()
        if self._say_after_s is not None and self.waited_s >= self._say_after_s:
            self._say()
        if self.waited_s >= self._fail_after_s - _ASK_BEFORE_S and not self._asked_last:
            self._asked_last = True
            self._lookout.ask(self._missing())

    def hide(self) -> None:
        """Takes back what others were shown."""
        if self._shown:
            self._lookout.show(())

    def end(self) -> None:
        """Says that it is over, if this rank has said that it lasts."""
        if self._has_said:
            seconds = f"{self.waited_s:.0f} s"
            _print(f"localsgd: rank {self._lookout.rank} goes on after {seconds}")

    def _look(self, done: Callable[[], bool]) -> None:
        """Raises if a rank can never come, unless it came just before it ended."""
        absent = self._missing()
        if not absent:
            return
        if self.waited_s >= _SHOW_AFTER_S:
            self._lookout.show(absent)
            self._shown = True
        try:
            self._lookout.check(absent)
        except RankFailure:
            if not done():
                raise

    def _ask(self) -> None:
        absent = self._missing()
        if absent:
            self._say_after_s = self.waited_s + self._lookout.ask(absent)
            self._ask_after_s = 2 * self.waited_s

    def _say(self) -> None:
        self._say_after_s, since = None, self._since
        self._since = self.now
        absent = self._missing()
        if absent and self._lookout.speaks(absent, since):
            self._has_said = True
            late = self._lookout.late(absent)
            _print(self._block(late))

    def _block(self, late: Late) -> str:
        head = f"localsgd: rank {self._lookout.rank} has waited {self.waited_s:.0f} s"
        then = f" (until {self._fail_after_s:g} s)" if math.isfinite(self._fail_after_s) else ""
        lines = [f"{head}{_where(late)} for {name_ranks(late.ranks)}{then}:", *_lines(late)]
        return "\n  ".join(lines)

    def _reason(self, late: Late) -> str:
        head = f"waited {self.waited_s:.1f} s (deadline {self._fail_after_s:g} s)"
        return f"{head}{_where(late)} for {name_ranks(late.ranks)}: {'; '.join(_lines(late))}"


def _where(late: Late) -> str:
    return f" in {late.where}" if late.where else ""


def _lines(late: Late) -> list[str]:
    left_out = len(late.words) - _MOST_LINES
    return [*late.words[:_MOST_LINES], *([f"and {left_out} more"] if left_out > 0 else [])]


def _print(text: str) -> None:
    # In one piece, or what other ranks say comes in between.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
