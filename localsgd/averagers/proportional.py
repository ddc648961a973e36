"""Workers of different speed: each takes as many steps a round as it has time for.

The steps of a round are those of the fastest worker. A slower one takes a share of them, by how
long a step took it in the round before, and its counter goes to the round's end after the last of
them, so that nobody waits long for another. What a worker has seen is its weight.

Source: the idea is that of Hop (Luo et al., arXiv 1902.01064) and of FedNova's unequal local steps
(Wang et al., arXiv 2007.07481); the mean weighted by steps is FedAvg's (arXiv 1602.05629).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.companion import Companion
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.observing import Kind
from localsgd.checks import checked_count, workers_of
from localsgd.comm import NON_MEMBER, Codec
from localsgd.comm.contract import Communicator, Update
from localsgd.outer import OuterOptimizer
from localsgd.schedules import every


class ProportionalAverager(ModelAverager):
    """A round after ``period`` steps of the fastest worker; slower ones take fewer.

        share_i = max(1, floor(period · fastest seconds a step / seconds a step of worker i))

    from what all measured in the last round; at first every share is ``period``. Where no samples
    are recorded, a worker weighs the steps that it took. Loops end by ``averager.step``, which is
    alike on all workers after a round, and not by a count of their own.

    Attributes:
        period: steps of the fastest worker in a round.
        share: steps of this worker in this round.
    """

    def __init__(
        self,
        period: int,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        guard: Guard | None = RAISING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Collective: everything but the clock must be equal on all ranks.

        Args:
            period: steps of the fastest worker in a round, at least 1.
            comm: the workers that take part; None means ``localsgd.world()``.
            outer, compress, error_feedback, guard: as in ``ModelAverager``.
            clock: what time it is, in seconds.

        Raises:
            TypeError, ValueError, MismatchError: as ``ModelAverager``.
        """
        self.period = checked_count("period", period, at_least=1)
        super().__init__(
            every(self.period),
            workers_of(comm),
            outer=outer,
            compress=compress,
            error_feedback=error_feedback,
            guard=guard,
        )
        self.share, self._taken, self._by_steps = self.period, 0, False
        self._clock, self._since = clock, clock()

    def average_parameters(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Counts one local step; after this worker's last one of a round, holds the round."""
        if self.comm is NON_MEMBER:
            return super().average_parameters(params, along)
        arenas = as_arenas(params)
        taken = self._taken + 1
        if taken < self.share and (self.step + 1) % self.period:
            self.comm.progress[0] = self.step = self.step + 1
            self._taken = taken
            self._ledger.of_step = None
            return False
        elapsed_s = self._clock() - self._since
        before, ledger = self.step, self._ledger.state_dict()
        self.step = (before // self.period + 1) * self.period - 1
        self._by_steps = self._ledger.samples[0] is None
        if self._by_steps:
            self._ledger.record(taken)
        try:
            held = super().average_parameters(arenas, along)
        except BaseException:
            self.step, self._ledger = before, self._ledger.loaded(ledger)
            raise
        self._share_anew(elapsed_s / taken)
        self._taken, self._since = 0, self._clock()
        return held

    def allow_uneven(self, allowed: bool) -> None:
        """
        Raises:
            ValueError: if workers may run out of data, which they tell each other step by step.
        """
        if allowed:
            raise ValueError("workers must take equal steps in uneven(), got shares of them")

    def _updates(
        self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int
    ) -> tuple[Sequence[Update | None], str, float]:
        updates, words, mix = super()._updates(arenas, group, kind, step)
        weighed = "weighed by steps" if self._by_steps and kind == "round" else ""
        return updates, ", ".join(word for word in (words, weighed) if word), mix

    def _share_anew(self, seconds_a_step: float) -> None:
        mine = max(seconds_a_step, 1e-9)
        fastest = min(float(seconds) for seconds in self.comm.collect(mine))
        self.share = max(1, int(self.period * (fastest / mine)))

    def state_dict(self) -> dict[str, Any]:
        """As ``ModelAverager.state_dict``, with this worker's share and its steps of this round."""
        return {**super().state_dict(), "share": self.share, "taken": self._taken}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for key in ("share", "taken"):
            if not isinstance(state_dict, Mapping) or key not in state_dict:
                raise ValueError(
                    f"a proportional averager's state must have {key!r}, got {state_dict!r}"
                )
        share = checked_count("share", state_dict["share"], at_least=1)
        taken = checked_count("taken", state_dict["taken"], at_least=0)
        super().load_state_dict(state_dict)
        self.share, self._taken = share, taken
        self._since = self._clock()
