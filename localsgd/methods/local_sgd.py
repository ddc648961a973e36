"""Local SGD in one line: a period, an inner optimizer, and the averager that goes with them."""

from __future__ import annotations

from localsgd.arrays import Buffers
from localsgd.averagers import ModelAverager, agreed_schedule
from localsgd.checks import checked_count, workers_of
from localsgd.comm.contract import Array, Communicator
from localsgd.gradients import GradientStage
from localsgd.lr import Rate
from localsgd.schedules import Schedule, every
from localsgd.training import InnerOptimizer, Policy, PostLocalSGDOptimizer


class LocalSGD(PostLocalSGDOptimizer):
    """Local SGD with any inner optimizer: every ``period`` steps the workers average.

    >>> import numpy as np
    >>> from localsgd import Arena, LocalSGD, optim
    >>> params = Arena({"w": np.zeros(3)})
    >>> training = LocalSGD(optim.SGD(params, lr=0.5), period=8)
    >>> params.grad["w"] += [1.0, 2.0, 3.0]
    >>> training.step()
    >>> params["w"]
    array([-0.5, -1. , -1.5])
    """

    averager: ModelAverager

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int,
        *,
        synchronous_steps: int = 0,
        comm: Communicator | None = None,
        gradients: GradientStage | None = None,
        state: Policy = "local",
        buffers: Buffers | None = None,
        rate: Rate | None = None,
    ) -> None:
        """Collective: numbers and options must be equal on all ranks.

        Args:
            optim: takes the local steps.
            period: steps per round, at least 1; the rounds follow steps p, 2p, 3p, ….
            synchronous_steps: for so many steps at first stay together: with ``gradients``, by
                averaging gradients (post-local SGD), else parameters after each step.
            comm: the workers that take part; None means those of the parameters.
            gradients, state, buffers, rate: as in ``PostLocalSGDOptimizer``.

        Raises:
            TypeError, ValueError: for an invalid argument.
            MismatchError: on every rank, if the numbers differ or those of another rank are
                invalid.
        """
        if not isinstance(optim, InnerOptimizer):
            raise TypeError(f"optim must be an optimizer of localsgd.optim, got {optim!r}")
        if comm is None and optim.arenas:
            comm = optim.arenas[0].comm
        comm = workers_of(comm)

        def prepare() -> Schedule:
            together = checked_count("synchronous_steps", synchronous_steps, at_least=0)
            if gradients is not None:
                return every(period, warmup_steps=together)
            return every(period, synchronous_steps=together)

        averager = ModelAverager(agreed_schedule(comm, prepare), comm)
        super().__init__(
            optim, averager, gradients=gradients, state=state, buffers=buffers, rate=rate
        )

    def record_samples(self, count: int) -> None:
        """Adds to the samples seen since the last round (``ModelAverager.record_samples``)."""
        self.averager.record_samples(count)

    def mean(self) -> dict[str, Array]:
        """The workers' mean parameters, for evaluating; theirs stay as they are. Collective."""
        self._tell("mean")
        return self.averager.mean_of(self.optim.arenas)
