"""What the wrapper needs of its parts: the members that it uses, and nothing else of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from localsgd.arrays import Arena, Subset

T = TypeVar("T")


@runtime_checkable
class InnerOptimizer(Protocol):
    """What takes the local steps: an optimizer of ``localsgd.optim``, or one like it."""

    @property
    def arenas(self) -> Sequence[Arena]:
        """The arenas that hold the parameters."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, with the names of the parameters as ``"params"``."""

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
class Checking(Protocol):
    """What can tell beforehand whether a step can be taken."""

    def checked_groups(self) -> object:
        """Raises TypeError or ValueError if it cannot."""


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


class Holder(Protocol):
    """What holds rounds of workers that may be lost (``localsgd.elastic``)."""

    def hold(self, work: Callable[[], T]) -> T:
        """What ``work`` gives; done again, from what was before it, if a worker is lost in it."""

    def welcome(self) -> None:
        """Takes in workers that are to join, after a round of all."""


def trained_by(optim: InnerOptimizer) -> list[Subset]:
    """Of every arena of an optimizer the parameters that its groups train."""
    names = {name for group in optim.param_groups for name in group["params"]}
    return [
        Subset(arena, tuple(name for name in arena.names if name in names))
        for arena in optim.arenas
    ]
