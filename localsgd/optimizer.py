"""One object to step: the local step, then whatever the averager does after it.

The wrapper holds nothing but the two. Groups and state are read through to the inner
optimizer, and the step is the averager's, so there is one owner of everything.

Source: torch.distributed.optim.PostLocalSGDOptimizer (PyTorch 2.13), whose members and state
dict this keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from localsgd.arena import Arena
from localsgd.averagers.base import ModelAverager, agreed_schedule
from localsgd.checks import caller_level, checked_count
from localsgd.comm import world
from localsgd.comm.base import Array, Communicator
from localsgd.schedules import every


@runtime_checkable
class InnerOptimizer(Protocol):
    """What takes the local steps: an optimizer of ``localsgd.optim``, or one like it."""

    @property
    def arenas(self) -> Sequence[Arena]:
        """The arenas that hold the parameters."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups."""

    @property
    def state(self) -> Mapping[str, Any]:
        """The state of every parameter."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; returns the loss that ``closure`` returned."""

    def zero_grad(self) -> None:
        """Sets the gradients to zero."""

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Trains further parameters."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of groups and state."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Takes over groups and state, or raises and changes nothing."""


@runtime_checkable
class Averager(Protocol):
    """What follows a local step: an averager of ``localsgd.averagers``, or anything like it."""

    step: int

    def average_parameters(self, params: Any) -> object:
        """Counts one local step; averages ``params``, a sequence of arenas, when due."""


@runtime_checkable
class Stateful(Protocol):
    """What can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...


class PostLocalSGDOptimizer:
    """Steps an optimizer, then lets an averager count the step and average when due.

    Attributes:
        optim: the inner optimizer.
        averager: the averager; its ``step`` is the only counter.
    """

    def __init__(self, optim: InnerOptimizer, averager: Averager) -> None:
        """Takes both as they are; not collective.

        Raises:
            TypeError: if one of them lacks a member that is needed.
        """
        if not isinstance(optim, InnerOptimizer):
            raise TypeError(f"optim must be an optimizer of localsgd.optim, got {optim!r}")
        if not isinstance(averager, Averager):
            raise TypeError(
                f"averager must have step and average_parameters(params), got {averager!r}"
            )
        self.optim = optim
        self.averager = averager

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups, the same list."""
        return self.optim.param_groups

    @property
    def state(self) -> Mapping[str, Any]:
        """The inner optimizer's state, the same object."""
        return self.optim.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one local step with the gradients, then averages when due.

        Collective when due. Gradients are zero afterwards.

        Args:
            closure: computes the loss and the gradients first.

        Returns:
            What ``closure`` returned.

        Raises:
            MismatchError, RankFailure: from the round; the local step is taken by then and the
                averager has not counted it.
        """
        loss = self.optim.step() if closure is None else self.optim.step(closure)
        self.averager.average_parameters(params=self.optim.arenas)
        return loss

    def zero_grad(self) -> None:
        """Sets the gradients to zero, to throw them away; a step does so itself."""
        self.optim.zero_grad()

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Trains and averages further parameters. Collective, as in the inner optimizer."""
        self.optim.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner state dict, the averager's counter as ``"step"``, its state as ``"averager"``.

        ``"averager"`` is absent if the averager has no ``state_dict``.
        """
        state = {**self.optim.state_dict(), "step": self.averager.step}
        if isinstance(self.averager, Stateful):
            state["averager"] = self.averager.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict``, of this class or of an inner optimizer; not collective.

        Warns:
            UserWarning: if it has no step counter; the counter is then 0 and warm-up runs again.

        Raises:
            TypeError, ValueError: if it does not fit; then nothing has changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {state_dict!r}")
        step = checked_count("step", state_dict.get("step", 0), at_least=0)
        previous_step = self.averager.step
        if isinstance(self.averager, Stateful) and "averager" in state_dict:
            previous = self.averager.state_dict()
            self.averager.load_state_dict(state_dict["averager"])
            try:
                self.optim.load_state_dict(state_dict)
            except BaseException:
                self.averager.load_state_dict(previous)
                self.averager.step = previous_step
                raise
        else:
            self.optim.load_state_dict(state_dict)
        self.averager.step = step
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
    ) -> None:
        """Collective: both numbers must be equal on all ranks.

        Args:
            optim: takes the local steps.
            period: steps per round, at least 1; the rounds follow steps p, 2p, 3p, ….
            synchronous_steps: for so many steps at first, average after each (post-local SGD).
            comm: the workers that take part; None means those of the parameters.

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
        super().__init__(optim, ModelAverager(schedule, comm))

    def record_samples(self, count: int) -> None:
        """Adds to the samples seen since the last round (``ModelAverager.record_samples``)."""
        self.averager.record_samples(count)

    def flush(self) -> None:
        """Averages now, as at the end of training; counts no step. Collective."""
        self.averager.flush(self.optim.arenas)

    def mean(self) -> dict[str, Array]:
        """The workers' mean parameters, for evaluating; theirs stay as they are. Collective."""
        return self.averager.mean_of(self.optim.arenas)
