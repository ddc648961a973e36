"""A round every so many steps, in PyTorch's phase.

Source: torch.distributed.algorithms.model_averaging.averagers.PeriodicModelAverager (PyTorch
2.13): constructor, warnings, steps at which it averages, and what a failed round leaves.
"""

from __future__ import annotations

import warnings

from localsgd.averagers.agreeing import agreed_schedule
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.guard import RAISING, Guard
from localsgd.checks import caller_level, workers_of
from localsgd.comm import Codec
from localsgd.comm.contract import Communicator
from localsgd.outer import OuterOptimizer
from localsgd.schedules import post_local


class PeriodicModelAverager(ModelAverager):
    """Averages after steps w+1, w+1+p, w+1+2p, … of all workers; w is the warm-up.

    Attributes:
        period: steps per round.
        warmup_steps: steps before the first round; gradients are expected to be averaged
            meanwhile.
    """

    def __init__(
        self,
        period: int,
        warmup_steps: int = 0,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: both numbers must be equal on all ranks.

        Args:
            period: steps per round, at least 1.
            warmup_steps: at least 0.
            comm: the workers that take part; None means ``localsgd.world()``.
            outer: makes the parameters after a round; None takes their mean.
            compress, error_feedback, guard: as in ``ModelAverager``.

        Warns:
            UserWarning: for a period of 1, which saves no communication.

        Raises:
            TypeError, ValueError: for an invalid number; ``warmup_steps`` is checked first.
            MismatchError: on every rank, if the numbers differ or those of another rank are
                invalid.
        """
        comm = workers_of(comm)
        schedule = agreed_schedule(comm, lambda: post_local(period, warmup_steps))
        if period == 1:
            warnings.warn(
                "period 1 averages parameters after every step, which saves no communication "
                "over averaging gradients.",
                stacklevel=caller_level(),
            )
        super().__init__(
            schedule,
            comm,
            outer=outer,
            compress=compress,
            error_feedback=error_feedback,
            guard=guard,
        )
        self._period, self._warmup_steps = int(period), int(warmup_steps)

    # Read-only, as the schedule decides: a number set here would change no round.
    @property
    def period(self) -> int:
        return self._period

    @property
    def warmup_steps(self) -> int:
        return self._warmup_steps
