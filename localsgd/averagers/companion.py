"""What is averaged along with the parameters: in the same rounds, by the same weights.

A companion knows its arrays and what their mean is; the averager knows when, among whom and
with which weights. Buffers and the state of an optimizer are companions. One may have a
schedule of its own, as in DES-LOC (arXiv 2505.22549), and take part in some of the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from localsgd.comm.contract import Communicator
from localsgd.schedules import Schedule


@runtime_checkable
class Companion(Protocol):
    """Arrays that take part in every round of an averager they are handed to.

    In a round first every companion says whether it is ``ready``, then the parameters are
    averaged, then every companion does ``join``. A worker of weight 0 takes the result and
    gives nothing; weight None, then on all workers, weighs equally.
    """

    @property
    def words(self) -> str:
        """What this is and how it is averaged, equal on all ranks; part of the round's label."""

    def ready(self, group: Communicator, weight: float | None) -> None:
        """Makes sure that ``join`` can be done, while nothing has changed yet.

        Collective in ``group``, or without communication on every rank.

        Raises:
            MismatchError: on every rank of the group, if it cannot.
        """

    def join(self, group: Communicator, weight: float | None) -> None:
        """Brings these arrays to what they are after a round. Collective in ``group``."""


class Scheduled:
    """A companion that takes part in those rounds that a schedule of its own says are due.

    Attributes:
        companion, schedule: as given.
    """

    def __init__(self, companion: Companion, schedule: Schedule) -> None:
        self.companion, self.schedule = companion, schedule

    @property
    def words(self) -> str:
        return self.companion.words

    def ready(self, group: Communicator, weight: float | None) -> None:
        self.companion.ready(group, weight)

    def join(self, group: Communicator, weight: float | None) -> None:
        self.companion.join(group, weight)


def taking_part(
    along: Sequence[Companion], kind: Literal["round", "flush"], step: int
) -> Sequence[Companion]:
    """Those that take part in the round after a step; in a flush all do."""
    return [
        entry
        for entry in along
        if kind == "flush" or not isinstance(entry, Scheduled) or entry.schedule.due(step)
    ]
