"""Rounds that nobody waits for: the mean arrives some steps later, and no step is lost.

Source: Zhu et al., DaSGD (arXiv 2006.00441), delayed averaging.
"""

from __future__ import annotations

from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.streaming import StreamingAverager
from localsgd.comm import Codec
from localsgd.comm.contract import Communicator
from localsgd.outer import OuterOptimizer


class OverlappedAverager(StreamingAverager):
    """Delayed averaging: a round of all parameters behind the next ``delay`` steps.

        parameters = parameters + (mean - parameters when the round began)

    so that no local step is lost; workers differ by what they have moved in those steps.
    """

    def __init__(
        self,
        period: int,
        delay: int,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        synchronous_steps: int = 0,
        warmup_steps: int = 0,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective; arguments and errors as in ``StreamingAverager``."""
        super().__init__(
            period,
            1,
            comm,
            outer=outer,
            compress=compress,
            error_feedback=error_feedback,
            delay=delay,
            keep_progress=True,
            synchronous_steps=synchronous_steps,
            warmup_steps=warmup_steps,
            guard=guard,
        )
