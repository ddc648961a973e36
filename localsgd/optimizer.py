"""One object to step: the local step, then whatever the averager does after it.

The wrapper holds nothing but its parts. Groups and state are read through to the inner
optimizer, and the step is the averager's, so there is one owner of everything.

Source: torch.distributed.optim.PostLocalSGDOptimizer (PyTorch 2.13), whose members and state
dict this keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from localsgd.agreement import agreed_among
from localsgd.arena import Arena
from localsgd.averagers.along import Companion
from localsgd.averagers.base import ModelAverager
from localsgd.buffers import Buffers
from localsgd.checks import caller_level, checked_count
from localsgd.comm import NON_MEMBER
from localsgd.state import Policy, check_policy, state_companion


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

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...


class PostLocalSGDOptimizer:
    """Steps an optimizer, then lets an averager count the step and average when due.

    Attributes:
        optim: the inner optimizer.
        averager: the averager; its ``step`` is the only counter.
        buffers: what the model keeps besides its parameters; None if nothing.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        averager: Averager,
        *,
        state: Policy = "local",
        buffers: Buffers | None = None,
    ) -> None:
        """Collective if there is an option.

        Args:
            optim: takes the local steps.
            averager: with options, one of ``localsgd.averagers``.
            state: what every round of any level, and every flush, does to the optimizer's
                state: "local" leaves it to each worker, "mean" averages it along with the
                parameters (the steps behind it must then be equally many), "reset" makes the
                optimizer begin anew.
            buffers: averaged along, each by its rule.

        Raises:
            TypeError: if one of them lacks a member that is needed.
            ValueError: for an optimizer that cannot honour the policy.
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
        self.buffers = buffers
        self._along: list[Companion] = []
        if state != "local" or buffers is not None:
            averager = self._core("state and buffers")

            def prepare() -> list[str]:
                check_policy(state, optim)
                if not isinstance(buffers, Buffers | None):
                    raise TypeError(f"buffers must be Buffers, got {buffers!r}")
                return [f"state={state!r}", f"buffers={buffers!r}"]

            agreed_among(averager.comm, "options", prepare, lambda lines: lines)
            companions = (state_companion(state, optim), buffers)
            self._along = [entry for entry in companions if entry is not None]

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
        self._count()
        return loss

    def flush(self) -> None:
        """Averages now, as at the end of training; counts no step. Collective."""
        self._core("flush").flush(self.optim.arenas, self._along)

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
        taken: list[Callable[[], object]] = []
        try:
            agreed_among(comm, "state dicts", lambda: self._take(state_dict, taken), _step_line)
        except BaseException:
            for put_back in reversed(taken):
                put_back()
            raise
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

    def _count(self) -> None:
        """Lets the averager count the step and average when due."""
        if self._along:
            self._core("state and buffers").average_parameters(self.optim.arenas, self._along)
        else:
            self.averager.average_parameters(params=self.optim.arenas)

    def _take(
        self, state_dict: Mapping[str, Any], taken: list[Callable[[], object]]
    ) -> Mapping[str, Any]:
        """Loads every part, and adds to ``taken`` how to undo what it has done."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {state_dict!r}")
        step = checked_count("step", state_dict.get("step", 0), at_least=0)
        parts: list[tuple[Stateful, Mapping[str, Any]]] = [(self.optim, state_dict)]
        if self.buffers is not None:
            if "buffers" not in state_dict:
                raise ValueError(f"state_dict must have 'buffers', got {list(state_dict)}")
            parts.append((self.buffers, state_dict["buffers"]))
        if isinstance(self.averager, Stateful) and "averager" in state_dict:
            parts.append((self.averager, state_dict["averager"]))
        for part, saved in parts:
            previous = part.state_dict()
            part.load_state_dict(saved)
            taken.append(partial(part.load_state_dict, previous))
        taken.append(partial(setattr, self.averager, "step", self.averager.step))
        self.averager.step = step
        return state_dict


def _step_line(state_dict: Mapping[str, Any]) -> Sequence[str]:
    return [f"step {state_dict.get('step', 0)}"]
