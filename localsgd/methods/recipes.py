"""The averagers of methods with their papers' numbers, for a front door to use.

A recipe makes the averager once the workers are known. What is wrong in its numbers on one rank is
an error on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from localsgd.arrays import Plan
from localsgd.averagers import (
    ElasticAverager,
    ModelAverager,
    OverlappedAverager,
    StreamingAverager,
    agreed_schedule,
)
from localsgd.checks import agreed_among
from localsgd.comm.contract import Communicator
from localsgd.outer import SGD, HasGroups, OuterOptimizer, SlowMo
from localsgd.schedules import Schedule, every


class Recipe(Protocol):
    """Makes an averager; collective.

    Of ``synchronous_steps`` and ``warmup_steps`` one is 0, as in ``every``.
    """

    def __call__(
        self, comm: Communicator, *, synchronous_steps: int, warmup_steps: int
    ) -> ModelAverager: ...


def local_sgd(period: int, outer: Callable[[], OuterOptimizer] | None = None) -> Recipe:
    """A mean every ``period`` steps, or what an outer optimizer makes of it."""

    def make(comm: Communicator, *, synchronous_steps: int, warmup_steps: int) -> ModelAverager:
        schedule = _every(comm, period, synchronous_steps, warmup_steps)
        return ModelAverager(schedule, comm, outer=_agreed(comm, outer))

    return make


def diloco(period: int, lr: float, momentum: float) -> Recipe:
    return local_sgd(period, _nesterov(lr, momentum))


def slowmo(inner: HasGroups, period: int, alpha: float, beta: float) -> Recipe:
    return local_sgd(period, lambda: SlowMo(inner, alpha=alpha, beta=beta))


def streaming_diloco(
    period: int, fragments: int | Plan, delay: int, mixing: float, lr: float, momentum: float
) -> Recipe:
    def make(comm: Communicator, *, synchronous_steps: int, warmup_steps: int) -> ModelAverager:
        return StreamingAverager(
            period,
            fragments,
            comm,
            outer=_agreed(comm, _nesterov(lr, momentum)),
            delay=delay,
            mixing=mixing,
            synchronous_steps=synchronous_steps,
            warmup_steps=warmup_steps,
        )

    return make


def overlapped(period: int, delay: int) -> Recipe:
    def make(comm: Communicator, *, synchronous_steps: int, warmup_steps: int) -> ModelAverager:
        return OverlappedAverager(
            period, delay, comm, synchronous_steps=synchronous_steps, warmup_steps=warmup_steps
        )

    return make


def easgd(period: int, beta: float, alpha: float | None) -> Recipe:
    def make(comm: Communicator, *, synchronous_steps: int, warmup_steps: int) -> ModelAverager:
        schedule = _every(comm, period, synchronous_steps, warmup_steps)
        return ElasticAverager(schedule, comm, beta=beta, alpha=alpha)

    return make


def _every(comm: Communicator, period: int, synchronous_steps: int, warmup_steps: int) -> Schedule:
    return agreed_schedule(
        comm,
        lambda: every(period, synchronous_steps=synchronous_steps, warmup_steps=warmup_steps),
    )


def _nesterov(lr: float, momentum: float) -> Callable[[], OuterOptimizer]:
    return lambda: SGD(lr, momentum=momentum, nesterov=bool(momentum))


def _agreed(comm: Communicator, make: Callable[[], OuterOptimizer] | None) -> OuterOptimizer | None:
    if make is None:
        return None
    return agreed_among(comm, "outer optimizers", make, lambda made: [repr(made)])
