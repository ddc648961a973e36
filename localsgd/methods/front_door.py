"""What the front doors have in common: an inner optimizer and a method's averager in one object."""

from __future__ import annotations

from typing import TypedDict

from localsgd.arrays import Buffers
from localsgd.averagers import RAISING, Guard, ModelAverager
from localsgd.checks import workers_of
from localsgd.comm import Codec
from localsgd.comm.contract import Array, Communicator
from localsgd.gradients import GradientStage
from localsgd.lr import Rate
from localsgd.methods.recipes import Recipe, Setting
from localsgd.training import InnerOptimizer, PostLocalSGDOptimizer, State


class Options(TypedDict, total=False):
    """What every front door takes; ``LocalSGD`` says what they mean."""

    synchronous_steps: int
    comm: Communicator | None
    gradients: GradientStage | None
    state: State
    buffers: Buffers | None
    rate: Rate | None
    compress: Codec | None
    error_feedback: bool
    guard: Guard | None


class FrontDoor(PostLocalSGDOptimizer):
    """The base of methods in one line."""

    averager: ModelAverager

    def __init__(
        self,
        optim: InnerOptimizer,
        recipe: Recipe,
        *,
        synchronous_steps: int = 0,
        comm: Communicator | None = None,
        gradients: GradientStage | None = None,
        state: State = "local",
        buffers: Buffers | None = None,
        rate: Rate | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective; arguments and errors as in ``LocalSGD``."""
        if not isinstance(optim, InnerOptimizer):
            raise TypeError(f"optim must be an optimizer of localsgd.optim, got {optim!r}")
        if comm is None and optim.arenas:
            comm = optim.arenas[0].comm
        steps = (0, synchronous_steps) if gradients is not None else (synchronous_steps, 0)
        setting = Setting(*steps, compress, error_feedback, guard)
        averager = recipe(workers_of(comm), setting)
        super().__init__(
            optim, averager, gradients=gradients, state=state, buffers=buffers, rate=rate
        )

    def record_samples(self, count: int) -> None:
        """Adds to the samples seen since the last round (``ModelAverager.record_samples``)."""
        self.averager.record_samples(count)

    def mean(self) -> dict[str, Array]:
        """What to evaluate: the workers' mean parameters; theirs stay as they are. Collective."""
        self._tell("mean")
        return self.averager.mean_of(self.optim.arenas)
