"""The averagers of methods with their papers' numbers, for a front door to use.

A recipe makes the averager once the workers are known. What is wrong in its numbers on one rank is
an error on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from localsgd.arrays import Plan
from localsgd.averagers import (
    RAISING,
    Ahead,
    ElasticAverager,
    Guard,
    ModelAverager,
    OverlappedAverager,
    StreamingAverager,
    agreed_schedule,
)
from localsgd.checks import agreed_among
from localsgd.comm import Codec
from localsgd.comm.contract import Communicator
from localsgd.decoupled import DecoupledAverager, Merging, Quorum
from localsgd.outer import SGD, HasGroups, OuterOptimizer, SlowMo
from localsgd.schedules import Schedule, every


@dataclass(frozen=True)
class Setting:
    """What an averager is made with besides the numbers of its method.

    Attributes:
        synchronous_steps, warmup_steps: as in ``every``; one of them is 0.
        compress, error_feedback, guard: as in ``ModelAverager``.
    """

    synchronous_steps: int = 0
    warmup_steps: int = 0
    compress: Codec | None = None
    error_feedback: bool = True
    guard: Guard | None = RAISING

    @property
    def steps(self) -> dict[str, Any]:
        """The steps before local phases, by the names of arguments."""
        return {"synchronous_steps": self.synchronous_steps, "warmup_steps": self.warmup_steps}

    @property
    def wire(self) -> dict[str, Any]:
        """How rounds are compressed and guarded, by the names of arguments."""
        wire = {"compress": self.compress, "error_feedback": self.error_feedback}
        return {**wire, "guard": self.guard}

    def schedule(self, comm: Communicator, period: int) -> Schedule:
        """A round every ``period`` steps, alike on all ranks. Collective."""
        return agreed_schedule(comm, lambda: every(period, **self.steps))

    def require_exact(self, comm: Communicator, method: str) -> None:
        """Raises ValueError on every rank if rounds are compressed. Collective."""

        def prepare() -> None:
            if self.compress is not None:
                raise ValueError(
                    f"{method} must have exact rounds, got compress={self.compress.name}"
                )

        agreed_among(comm, "codecs", prepare, lambda _: [])


class DecoupledOptions(TypedDict, total=False):
    """What ``DecoupledAverager`` takes besides its fragments; it says what they mean."""

    quorum: Quorum | None
    merging: Merging | None
    delay: int
    mixing: float | None
    staleness: int | None
    on_time: bool
    log: str | Path | None
    replay: str | Path | None


# Makes an averager; collective.
Recipe: TypeAlias = Callable[[Communicator, Setting], ModelAverager]


def local_sgd(period: int, outer: Callable[[], OuterOptimizer] | None = None) -> Recipe:
    """A mean every ``period`` steps, or what an outer optimizer makes of it."""

    def make(comm: Communicator, setting: Setting) -> ModelAverager:
        schedule = setting.schedule(comm, period)
        return ModelAverager(schedule, comm, outer=_agreed(comm, outer), **setting.wire)

    return make


def diloco(period: int, lr: float, momentum: float) -> Recipe:
    return local_sgd(period, _nesterov(lr, momentum))


def slowmo(inner: HasGroups, period: int, alpha: float, beta: float) -> Recipe:
    return local_sgd(period, lambda: SlowMo(inner, alpha=alpha, beta=beta))


def streaming_diloco(
    period: int, fragments: int | Plan, delay: int, mixing: float, lr: float, momentum: float
) -> Recipe:
    def make(comm: Communicator, setting: Setting) -> ModelAverager:
        return StreamingAverager(
            period,
            fragments,
            comm,
            outer=_agreed(comm, _nesterov(lr, momentum)),
            delay=delay,
            mixing=mixing,
            **setting.wire,
            **setting.steps,
        )

    return make


def decoupled_diloco(
    period: int, fragments: int | Plan, lr: float, momentum: float, options: DecoupledOptions
) -> Recipe:
    def make(comm: Communicator, setting: Setting) -> ModelAverager:
        outer = _agreed(comm, _nesterov(lr, momentum))
        return DecoupledAverager(period, fragments, comm, outer=outer, **options)

    return make


def overlapped(period: int, delay: int) -> Recipe:
    return lambda comm, setting: OverlappedAverager(
        period, delay, comm, **setting.wire, **setting.steps
    )


def easgd(
    period: int, beta: float, alpha: float | None, ahead: Callable[[], Ahead | None] = lambda: None
) -> Recipe:
    def make(comm: Communicator, setting: Setting) -> ModelAverager:
        setting.require_exact(comm, "EASGD")
        schedule = setting.schedule(comm, period)
        leads = agreed_among(comm, "look-aheads", ahead, lambda made: [str(made is not None)])
        return ElasticAverager(
            schedule, comm, beta=beta, alpha=alpha, ahead=leads, guard=setting.guard
        )

    return make


def scaffold(period: int, check: Callable[[], object]) -> Recipe:
    """``check`` raises unless the inner optimizer is one whose steps can be controlled."""

    def make(comm: Communicator, setting: Setting) -> ModelAverager:
        def prepare() -> None:
            check()
            if setting.guard is not None and setting.guard.not_finite == "leave out":
                raise ValueError(
                    f"SCAFFOLD must have the rounds of all workers, got guard={setting.guard!r}"
                )

        agreed_among(comm, "optimizers", prepare, lambda _: [])
        setting.require_exact(comm, "SCAFFOLD")
        return local_sgd(period)(comm, setting)

    return make


def _nesterov(lr: float, momentum: float) -> Callable[[], OuterOptimizer]:
    return lambda: SGD(lr, momentum=momentum, nesterov=bool(momentum))


def _agreed(comm: Communicator, make: Callable[[], OuterOptimizer] | None) -> OuterOptimizer | None:
    if make is None:
        return None
    return agreed_among(comm, "outer optimizers", make, lambda made: [repr(made)])
