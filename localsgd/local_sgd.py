"""Local SGD in one line: a period, an inner optimizer, and the averager that goes with them."""

from __future__ import annotations

from localsgd.averagers.base import ModelAverager, agreed_schedule
from localsgd.buffers import Buffers
from localsgd.comm import world
from localsgd.comm.base import Array, Communicator
from localsgd.optimizer import InnerOptimizer, PostLocalSGDOptimizer
from localsgd.schedules import every
from localsgd.state import Policy


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
        state: Policy = "local",
        buffers: Buffers | None = None,
    ) -> None:
        """Collective: numbers and options must be equal on all ranks.

        Args:
            optim: takes the local steps.
            period: steps per round, at least 1; the rounds follow steps p, 2p, 3p, ….
            synchronous_steps: for so many steps at first, average after each.
            comm: the workers that take part; None means those of the parameters.
            state, buffers: as in ``PostLocalSGDOptimizer``.

        Raises:
            TypeError, ValueError: for an invalid argument.
            MismatchError: on every rank, if the numbers differ or those of another rank are
                invalid.
        """
        if not isinstance(optim, InnerOptimizer):
            raise TypeError(f"optim must be an optimizer of localsgd.optim, got {optim!r}")
        if comm is None:
            comm = optim.arenas[0].comm if optim.arenas else world()
        schedule = agreed_schedule(comm, lambda: every(period, synchronous_steps=synchronous_steps))
        super().__init__(optim, ModelAverager(schedule, comm), state=state, buffers=buffers)

    def record_samples(self, count: int) -> None:
        """Adds to the samples seen since the last round (``ModelAverager.record_samples``)."""
        self.averager.record_samples(count)

    def mean(self) -> dict[str, Array]:
        """The workers' mean parameters, for evaluating; theirs stay as they are. Collective."""
        return self.averager.mean_of(self.optim.arenas)
