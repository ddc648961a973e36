"""One object to step: the local step, then whatever the averager does after it.

The wrapper holds nothing but its parts. Groups and state are read through to the inner
optimizer, and the step is the averager's, so there is one owner of everything.

Source: torch.distributed.optim.PostLocalSGDOptimizer (PyTorch 2.13), whose members and state
dict this keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from localsgd.arrays import Buffers
from localsgd.averagers import Companion, ModelAverager
from localsgd.checks import caller_level, checked_count
from localsgd.comm import NON_MEMBER
from localsgd.gradients import GradientStage, divide
from localsgd.lr import Rate, apply_rate
from localsgd.resizing import SavedStates
from localsgd.training.loading import load_together, resized
from localsgd.training.options import companions
from localsgd.training.parts import (
    Averager,
    Checking,
    Holder,
    InnerOptimizer,
    Stateful,
    trained_by,
)
from localsgd.training.state import State, reseeding
from localsgd.training.uneven import Kind, UnevenEnds, Without

T = TypeVar("T")


class PostLocalSGDOptimizer:
    """Steps an optimizer, then lets an averager count the step and average when due.

    Attributes:
        optim: the inner optimizer.
        averager: the averager; its ``step`` is the only counter.
        gradients: averages gradients; None if each worker steps with its own.
        buffers: what the model keeps besides its parameters; None if nothing.
        rate: the learning rate as a function of the step; None leaves it to the loop. May be
            replaced at any time.
        survival: holds rounds, again if they fail; None lets what they raise through.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        averager: Averager,
        *,
        gradients: GradientStage | None = None,
        state: State = "local",
        buffers: Buffers | None = None,
        rate: Rate | None = None,
    ) -> None:
        """Collective with an averager of ``localsgd.averagers``.

        Args:
            optim: takes the local steps.
            averager: with options, one of ``localsgd.averagers``.
            gradients: averages gradients before a step, until the averager's warm-up ends or
                beyond; of the averager's workers.
            state: what every round of any level, and every flush, does to the optimizer's
                state: "local" leaves it to each worker, "mean" averages it along with the
                parameters (the steps behind it must then be equally many), "reset" makes the
                optimizer begin anew. Or for some keys of it the rounds that average them, as in
                ``{"exp_avg": every(48), "exp_avg_sq": every(96)}`` with a round every 16 steps.
            buffers: averaged along, each by its rule.
            rate: sets the learning rate of every step, as in ``localsgd.lr``.

        Raises:
            TypeError: if one of them lacks a member that is needed.
            ValueError: for an optimizer that cannot honour the policy, or a gradient stage of
                other workers than the averager's.
            MismatchError: on every rank, if options differ or those of another rank are invalid.
        """
        if not isinstance(optim, InnerOptimizer):
            raise TypeError(f"optim must be an optimizer of localsgd.optim, got {optim!r}")
        if not isinstance(averager, Averager):
            raise TypeError(
                f"averager must have step and average_parameters(params), got {averager!r}"
            )
        self.optim = optim
        self.averager = averager
        self.gradients, self.buffers, self.rate = gradients, buffers, rate
        self.survival: Holder | None = None
        self._ends: UnevenEnds | None = None
        self._along: list[Companion] = []
        self._reseed: Callable[[], None] | None = None
        has_options = state != "local" or any(
            option is not None for option in (gradients, buffers, rate)
        )
        if has_options or isinstance(averager, ModelAverager):
            core = self._core("options")
            self._along = companions(core, optim, state, gradients, buffers, rate)
            self._reseed = reseeding(core.guard, state, optim)

    @property
    def along(self) -> Sequence[Companion]:
        """What is averaged with the parameters."""
        return self._along

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups, the same list."""
        return self.optim.param_groups

    @property
    def state(self) -> Mapping[str, Any]:
        """The inner optimizer's state, the same object."""
        return self.optim.state

    def step(
        self, closure: Callable[[], float] | None = None, *, micro_batches: int = 1
    ) -> float | None:
        """Averages gradients if that is due, takes one local step, then averages when due.

        Collective when due. Gradients are zero afterwards.

        Args:
            closure: computes the loss and the gradients first.
            micro_batches: how many gradients were added up; the step takes their mean.

        Returns:
            What ``closure`` returned.

        Raises:
            TypeError, ValueError: for an invalid hyperparameter; gradients are then as before.
            MismatchError, RankFailure: from the averages. Those of gradients come before the
                step; when the round fails the local step is taken, and not counted.
        """
        self._begin()
        self._set_rate()
        if self.gradients is None and micro_batches == 1:
            loss = self.optim.step() if closure is None else self.optim.step(closure)
            self._tell("step")
        else:
            count = checked_count("micro_batches", micro_batches, at_least=1)
            loss = None if closure is None else closure()
            self._check_step()
            self._tell("step")
            for arena in self.optim.arenas if count > 1 else ():
                divide(arena.grad.flat, count)
            self._step_averaged(skip=False)
        self._count()
        return loss

    def skip_step(self) -> None:
        """Counts a step without this worker's gradient, which may not be finite. Collective alike.

        Its gradient and the samples recorded for it are thrown away. Where gradients are
        averaged in this step, the worker takes the step of the others, so that replicas stay
        equal; if all skip it, and where each worker steps alone, no step is taken. (Adam's state
        has then seen fewer steps than others', which ``state="mean"`` refuses.)
        """
        self._begin()
        self._set_rate()
        if self.gradients is not None:
            self._check_step()
        self._tell("step")
        self._step_averaged(skip=True)
        self._count()

    @contextmanager
    def uneven(self) -> Iterator[None]:
        """Lets workers take different numbers of steps; at its end all hold equal parameters.

            with training.uneven():
                for batch in batches:      # of any number, none included
                    …
                    training.step()

        Collective, at equal steps. ``localsgd.training.uneven`` says what workers without data do
        and what each weighs; one waits for the others no longer than the group's deadline. Learning
        rates that change belong in ``rate``, as it takes the steps of averaged gradients, too.

        Raises:
            TypeError: for an averager that is not one of ``localsgd.averagers``.
            ValueError: if entered twice, or where workers may be lost (``Survival``).
            MismatchError: on every rank, if ranks stand at different steps, or those with data
                do different things.
            RankFailure: on the others, if a rank fails before all have left.
        """
        averager = self._core("uneven()")
        if self._ends is not None:
            raise ValueError("uneven() must not be entered twice, got a second time")
        if self.survival is not None:
            raise ValueError("uneven() must be without a Survival, got one")
        if averager.comm is NON_MEMBER:
            yield
            return
        without = Without(
            step=self._take_step_of_others,
            count=lambda: averager.sit_out(self.optim.arenas, self._along),
            flush=lambda: averager.flush(self.optim.arenas, self._along),
            mean=lambda: averager.mean_of(self.optim.arenas),
        )
        self._begin()
        self._ends = UnevenEnds(averager, without)
        try:
            yield
            self._ends.answer()
        finally:
            self._ends.end()
            self._ends = None

    def flush(self) -> None:
        """Averages now, as at the end of training; counts no step. Collective."""
        self._tell("flush")
        averager = self._core("flush()")
        self._follow(self._held(lambda: averager.flush(self.optim.arenas, self._along)))

    def zero_grad(self) -> None:
        """Sets the gradients to zero, to throw them away; a step does so itself."""
        self.optim.zero_grad()

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Trains and averages further parameters. Collective, as in the inner optimizer."""
        self.optim.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner state dict, the averager's counter as ``"step"``, its state as ``"averager"``.

        ``"averager"`` is absent if the averager has no ``state_dict``, and ``"buffers"`` if there
        are none.
        """
        state = {**self.optim.state_dict(), "step": self.averager.step}
        if isinstance(self.averager, Stateful):
            state["averager"] = self.averager.state_dict()
        if self.buffers is not None:
            state["buffers"] = self.buffers.state_dict()
        return state

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """This rank's state of one that a group of another size or layout has saved. Collective.

        The inner optimizer goes on as that of a rank that saved.
        """
        return resized(saved, {"": self.optim, "averager": self.averager, "buffers": self.buffers})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict``, of this class or of an inner optimizer.

        Collective with an averager of ``localsgd.averagers``: all ranks load, at equal steps.

        Warns:
            UserWarning: if it has no step counter; the counter is then 0 and warm-up runs again.

        Raises:
            TypeError, ValueError: if it does not fit; then nothing has changed on any rank.
            MismatchError: on every rank, if steps differ or another rank's does not fit.
        """
        comm = self.averager.comm if isinstance(self.averager, ModelAverager) else NON_MEMBER
        parts: dict[str, Stateful] = {"": self.optim}
        if self.buffers is not None:
            parts["buffers"] = self.buffers
        if isinstance(self.averager, Stateful):
            parts["averager"] = self.averager
        load_together(comm, state_dict, self.averager, parts, optional=("averager",))
        if isinstance(self.averager, ModelAverager) and "averager" not in state_dict:
            self.averager.forget_samples()
        if "step" not in state_dict:
            warnings.warn(
                "Loaded state dict does not contain a step counter for an averager. "
                "Setting step counter to 0.",
                stacklevel=caller_level(),
            )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.optim!r}, {self.averager!r}, step={self.averager.step})"
        )

    def _core(self, wanted_by: str) -> ModelAverager:
        """The averager, if it is one of ours."""
        if not isinstance(self.averager, ModelAverager):
            raise TypeError(
                f"{wanted_by} must have an averager of localsgd.averagers, got {self.averager!r}"
            )
        return self.averager

    def _begin(self) -> None:
        """Lets the averager know from where local steps start, before the first."""
        if isinstance(self.averager, ModelAverager) and not self.averager.begun:
            self.averager.begin(self.optim.arenas)

    def _tell(self, kind: Kind) -> None:
        """Where workers end unevenly, tells those without data, if they are needed."""
        if self._ends is not None:
            stage = self.gradients if kind == "step" else None
            averager = self._core("uneven()")
            by_gradient = stage is not None and stage.group_due(averager) is not None
            self._ends.tell(kind, by_gradient=by_gradient)

    def _take_step_of_others(self) -> None:
        self._set_rate()
        if self.gradients is not None:
            self._step_averaged(skip=True)

    def _set_rate(self) -> None:
        if self.rate is not None:
            apply_rate(self.rate, self.averager.step, self.param_groups)

    def _check_step(self) -> None:
        """Before anything changes, raises what the step would raise, if the optimizer can tell."""
        if isinstance(self.optim, Checking):
            self.optim.checked_groups()

    def _step_averaged(self, *, skip: bool) -> None:
        """Takes the step with the averaged gradient, or none if there is no gradient."""
        goes = not skip
        if self.gradients is not None:
            trained = trained_by(self.optim)
            average = partial(self.gradients.average, skip=skip, trained=trained)
            averager = self._core("gradients")
            goes = self._held(
                lambda: average(self.optim.arenas, averager),
                due=self.gradients.group_due(averager) is not None,
            )
        elif skip and isinstance(self.averager, ModelAverager):
            self.averager.take_back_samples()
        if goes:
            self.optim.step()
        else:
            self.optim.zero_grad()

    def _count(self) -> None:
        """Lets the averager count the step and average when due."""
        due = of_all = False
        if self.survival is not None:
            core = self._core("survival")
            group = core.group_due(core.step + 1)
            due, of_all = core.is_due(), group is core.comm and self._ends is None
        if self._along:
            average = self._core("state and buffers").average_parameters
            self._follow(self._held(lambda: average(self.optim.arenas, self._along), due=due))
        else:
            count, params = self.averager.average_parameters, self.optim.arenas
            self._follow(self._held(lambda: count(params=params), due=due))
        if self.survival is not None and of_all:
            self.survival.welcome()

    def _follow(self, held: object) -> None:
        """After a round that this worker was left out of, makes its optimizer begin anew."""
        if held and self._reseed is not None and self._core("a guard").left_out:
            self._reseed()

    def _held(self, work: Callable[[], T], *, due: bool = True) -> T:
        return work() if self.survival is None or not due else self.survival.hold(work)
