"""Rounds that come more often as the loss falls.

Source: Wang and Joshi, Adaptive communication strategies (arXiv 1810.08313), section 4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localsgd.checks import checked_count, checked_number, name_of
from localsgd.schedules.deciding import DecidingSchedule, Report


class AdaComm(DecidingSchedule):
    """Sets the period anew every ``interval_s`` seconds, by how far the loss has come.

        period = ceil(sqrt(F / F_0 · eta_0 / eta) · period_0)

    F is the mean of the losses that all workers have recorded since the period was set last, F_0
    that of the first round. Where this is no shorter than before, and the learning rate eta as it
    was, the period is halved. Without ``rate`` eta does not count.
    """

    def __init__(
        self,
        period: int,
        interval_s: float = 60.0,
        *,
        rate: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            period: steps of the first round.
            interval_s: seconds from one decision to the next, by the clock that is ahead; 0
                decides after every round.
            rate: the learning rate as a function of the steps taken before, equal on all ranks.
            clock: what time it is, in seconds.

        Raises:
            TypeError, ValueError: for an argument out of its range.
        """
        super().__init__(period)
        if rate is not None and not callable(rate):
            raise TypeError(f"rate must be a function of the step, got {rate!r}")
        self._interval_s = checked_number("interval_s", interval_s)
        self._rate, self._clock = rate, clock
        self._first_period, self._words = self.period, f"{period}, {self._interval_s:g}"
        self._first_loss, self._first_eta, self._eta = 0.0, 0.0, 0.0
        self._losses, self._count = 0.0, 0
        self._since = clock()

    def record_loss(self, loss: float) -> None:
        """Adds the loss of a local step; at least one in every round, on all workers.

        Raises:
            TypeError, ValueError: unless it is a finite number of at least 0.
        """
        self._losses += checked_number("loss", loss)
        self._count += 1

    def report(self, step: int) -> Report:
        return [self._losses, self._count, self._clock() - self._since]

    def next_period(self, step: int, reports: Sequence[Report]) -> int:
        count = sum(entry[1] for entry in reports)
        if min(entry[1] for entry in reports) == 0:
            raise ValueError(
                "record_loss(loss) must be called on every worker before a round, got no loss on "
                f"rank {[entry[1] for entry in reports].index(0)}"
            )
        loss = math.fsum(entry[0] for entry in reports) / count
        eta = 0.0 if self._rate is None else checked_number("the learning rate", self._rate(step))
        if self.last_round == 0:
            self._first_loss, self._first_eta, self._eta = loss, eta, eta
            self._begin()
            return self.period
        if max(entry[2] for entry in reports) < self._interval_s:
            return self.period
        # Neither a loss nor a rate of 0 says how far to go.
        of_loss = loss / self._first_loss if self._first_loss else 1.0
        of_rate = self._first_eta / eta if eta else 1.0
        period = max(1, math.ceil(math.sqrt(of_loss * of_rate) * self._first_period))
        if period >= self.period and eta == self._eta:
            period = max(1, self.period // 2)
        self._eta = eta
        self._begin()
        return period

    def _begin(self) -> None:
        self._losses, self._count, self._since = 0.0, 0, self._clock()

    def state_dict(self) -> dict[str, Any]:
        """What was decided, and this worker's losses and seconds since then."""
        return {
            **super().state_dict(),
            "first": [self._first_loss, self._first_eta],
            "eta": self._eta,
            "losses": [self._losses, self._count],
            "elapsed_s": self._clock() - self._since,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        saved = self.checked_state(state_dict)
        for (name, value), at_least in zip(
            (*enumerate(saved["first"]), *enumerate(saved["losses"])), (0.0,) * 4, strict=True
        ):
            checked_number(f"saved number {name}", value, at_least=at_least)
        count = checked_count("saved losses", saved["losses"][1], at_least=0)
        elapsed_s = checked_number("elapsed_s", saved["elapsed_s"])
        self._eta = checked_number("eta", saved["eta"])
        self.period, self.last_round = saved["period"], saved["last_round"]
        self._first_loss, self._first_eta = map(float, saved["first"])
        self._losses, self._count = float(saved["losses"][0]), count
        self._since = self._clock() - elapsed_s

    def __repr__(self) -> str:
        rate = "" if self._rate is None else f", rate={name_of(self._rate)}"
        return f"AdaComm({self._words}{rate})"
