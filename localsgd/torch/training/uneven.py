"""How torch's workers with unequal amounts of data end together, by the core's protocol.

A worker with data says what it is about to do: before its gradients are averaged, during the
backward pass, or else before a round. One without data answers, and takes part without giving.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from localsgd.averagers import Companion
from localsgd.torch.averagers import CoreAverager
from localsgd.torch.gradients import GradientStage
from localsgd.training import UnevenEnds, Without


class TorchUnevenEnds:
    """One worker's part, from the time when workers may run out of data until all have."""

    def __init__(
        self,
        optim: Optimizer,
        averager: CoreAverager,
        gradients: GradientStage | None,
        along: Sequence[Companion],
    ) -> None:
        """Collective: gives parameters their places, since a worker may never take a step.

        Raises:
            MismatchError: on every rank, if ranks stand at different steps.
        """
        self._optim, self._averager, self._gradients = optim, averager, gradients
        without = Without(
            step=self._take_step_of_others,
            count=lambda: averager.sit_out(optim.param_groups, along),
            flush=lambda: averager.flush(optim.param_groups, along),
        )
        self._ends = UnevenEnds(averager.averager, without)
        averager.begin(optim.param_groups)
        self._told = averager.step
        if gradients is not None:
            gradients.on_begin = self._tell_of_gradients

    def tell_step(self) -> None:
        """Before a step is counted: says so, if others are needed and do not know yet."""
        if self._averager.step + 1 != self._told:
            self._ends.tell("step")

    def tell_flush(self) -> None:
        """Before a flush: says so."""
        self._ends.tell("flush")

    def answer(self) -> None:
        """Takes part in what others do until all are done; then all hold a last round."""
        if self._gradients is not None:
            self._gradients.on_begin = None
        self._ends.answer()

    def end(self) -> None:
        """From here on all workers take all steps."""
        self._ends.end()
        if self._gradients is not None:
            self._gradients.on_begin = None

    def _tell_of_gradients(self) -> None:
        if self._averager.step + 1 == self._told:
            raise ValueError(
                "gradients must be averaged once a step where workers end unevenly, got a second "
                "time: use no_sync() for all passes of a step but the last"
            )
        self._told = self._averager.step + 1
        self._ends.tell("step", by_gradient=True)

    def _take_step_of_others(self) -> None:
        self._optim.zero_grad()
        if self._gradients is not None and self._gradients.average(skip=True):
            self._optim.step()
