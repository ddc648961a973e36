"""Rounds at regular times, whatever a step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from localsgd.checks import checked_count, checked_number
from localsgd.schedules.deciding import DecidingSchedule, Report


class Timed(DecidingSchedule):
    """A round every so many seconds: as many steps as the slowest worker takes in that time.

        period = max(1, floor(seconds · steps of the last round / seconds of the slowest worker))

    at most ``growth`` times the one before. A step is counted to the seconds in which it was taken,
    the round before it included.
    """

    def __init__(
        self,
        seconds: float,
        *,
        first_period: int = 1,
        growth: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            seconds: from one round to the next, above 0.
            first_period: steps of the first round, after which the speed is known.
            growth: at least 2; what one fast round may make of the next.
            clock: what time it is, in seconds.

        Raises:
            TypeError, ValueError: for an argument out of its range.
        """
        super().__init__(checked_count("first_period", first_period, at_least=1))
        self._seconds = checked_number("seconds", seconds)
        if self._seconds == 0:
            raise ValueError(f"seconds must be above 0, got {seconds}")
        self._growth = checked_count("growth", growth, at_least=2)
        self._clock, self._first_period = clock, first_period
        self._since = clock()

    def report(self, step: int) -> Report:
        now = self._clock()
        elapsed_s, self._since = now - self._since, now
        return [elapsed_s]

    def next_period(self, step: int, reports: Sequence[Report]) -> int:
        slowest_s, steps = max(entry[0] for entry in reports), step - self.last_round
        most = self.period * self._growth
        if slowest_s * most <= self._seconds * steps:
            return most
        return max(1, int(self._seconds * steps / slowest_s))

    def __repr__(self) -> str:
        first, growth = f"first_period={self._first_period}", f"growth={self._growth}"
        return f"Timed({self._seconds:g}, {first}, {growth})"
