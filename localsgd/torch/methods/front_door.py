"""What the front doors have in common: torch's optimizer and a method's averager in one object."""

from __future__ import annotations

from typing import TypedDict

from torch.optim import Optimizer

from localsgd.averagers import RAISING, Guard
from localsgd.comm import Codec
from localsgd.methods import Recipe, Setting
from localsgd.torch.arrays import ModuleBuffers
from localsgd.torch.averagers import CoreAverager
from localsgd.torch.comm import ProcessGroup, communicator
from localsgd.torch.training import PostLocalSGDOptimizer
from localsgd.training import State


class Options(TypedDict, total=False):
    """What every front door takes; ``LocalSGD`` says what they mean."""

    synchronous_steps: int
    warmup_steps: int
    process_group: ProcessGroup
    state: State
    buffers: ModuleBuffers | None
    compress: Codec | None
    error_feedback: bool
    guard: Guard | None


class FrontDoor(PostLocalSGDOptimizer):
    """The base of methods in one line."""

    averager: CoreAverager

    def __init__(
        self,
        optim: Optimizer,
        recipe: Recipe,
        *,
        synchronous_steps: int = 0,
        warmup_steps: int = 0,
        process_group: ProcessGroup = None,
        state: State = "local",
        buffers: ModuleBuffers | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective; arguments and errors as in ``LocalSGD``."""
        setting = Setting(synchronous_steps, warmup_steps, compress, error_feedback, guard)
        averager = recipe(communicator(process_group), setting)
        super().__init__(optim, CoreAverager(averager), state=state, buffers=buffers)

    def record_samples(self, count: int) -> None:
        """Adds to the samples seen since the last round, this worker's weight in the next."""
        self.averager.record_samples(count)
