"""How torch's workers with unequal amounts of data end together, by the core's protocol.

A worker with data says what it is about to do: before its gradients are averaged, during the
backward pass, or else before a round. One without data answers, and takes part without giving.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from localsgd.averagers.along import Companion
from localsgd.torch.averagers import CoreAverager
from localsgd.torch.gradients import GradientStage
from localsgd.uneven import Meeting, Wanted


class UnevenEnds:
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
        self._optim, self._averager = optim, averager
        self._gradients, self._along = gradients, along
        self._meeting = Meeting(averager.comm, averager.step)
        averager.place(optim.param_groups)
        averager.averager.allow_uneven(True)
        self._told = averager.step
        if gradients is not None:
            gradients.on_begin = self._tell_gradients

    def tell_step(self) -> None:
        """Before a step is counted: says so, if others are needed and do not know yet."""
        step = self._averager.step + 1
        if step != self._told and self._averager.averager.group_due(step) is not None:
            self._tell_of_step(by_gradient=False)

    def tell_flush(self) -> None:
        """Before a flush: says so."""
        core = self._averager.averager
        self._meeting.tell(Wanted("flush", core.step, False, core.has_samples(core.comm)))

    def answer(self) -> None:
        """Takes part in what others do until all are done; then all hold a last round."""
        core, params = self._averager.averager, self._optim.param_groups
        if self._gradients is not None:
            self._gradients.on_begin = None
        while isinstance(wanted := self._meeting.answer(core.step), Wanted):
            self._sit_out(wanted.step - (wanted.kind == "step"))
            if wanted.kind == "flush":
                self._averager.flush(params, self._along)
                continue
            self._optim.zero_grad()
            if self._gradients is not None:
                if wanted.gradient_by_samples:
                    core.record_samples(0)
                if self._gradients.average(skip=True):
                    self._optim.step()
            self._averager.sit_out(params, self._along)
        self._sit_out(wanted)
        if not self._averager.flush(params, self._along):
            # Nobody has anything to give, so whoever is not equal by now moved without weight.
            core.forget_samples()
            core.allow_uneven(False)
            self._averager.flush(params, self._along)

    def end(self) -> None:
        """From here on all workers take all steps."""
        self._averager.averager.allow_uneven(False)
        if self._gradients is not None:
            self._gradients.on_begin = None

    def _tell_gradients(self) -> None:
        if self._averager.step + 1 == self._told:
            raise ValueError(
                "gradients must be averaged once a step where workers end unevenly, got a second "
                "time: use no_sync() for all passes of a step but the last"
            )
        self._tell_of_step(by_gradient=True)

    def _tell_of_step(self, *, by_gradient: bool) -> None:
        core = self._averager.averager
        self._told = core.step + 1
        group = core.group_due(self._told)
        of_gradient = by_gradient and core.samples_of_step is not None
        of_round = group is not None and core.has_samples(group)
        self._meeting.tell(Wanted("step", self._told, of_gradient, of_round))

    def _sit_out(self, step: int) -> None:
        """Counts the steps up to this one, in which nothing is averaged."""
        while self._averager.step < step:
            self._averager.sit_out(self._optim.param_groups, self._along)
