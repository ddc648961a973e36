"""Who is told of rounds: observers, which change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from localsgd.arrays import Arena
from localsgd.comm.contract import Communicator, Traffic

if TYPE_CHECKING:
    from localsgd.averagers.averager import ModelAverager

Kind: TypeAlias = Literal["round", "flush"]


@dataclass(frozen=True)
class Round:
    """A round that was held.

    Attributes:
        kind: whether it was due or asked for.
        step: the local step after which it ended.
        group: the workers that held it.
        traffic: what this worker moved for it.
        equal: whether all of them hold equal parameters after it.
    """

    kind: Kind
    step: int
    group: Communicator
    traffic: Traffic
    equal: bool


class Observer(Protocol):
    """Is told of every round, in ``ModelAverager.observers``."""

    def before(self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int) -> None:
        """A round may come now, on all workers of the averager at this step.

        It may read the arenas and use the averager's workers; what it raises ends the step.
        """

    def after(self, arenas: Sequence[Arena], held: Round) -> None:
        """A round was held; not collective. One in the background is told when it arrives."""


# Each is called with every averager that is made in this process.
WATCHERS: list[Callable[[ModelAverager], None]] = []
