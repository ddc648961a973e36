"""What became of a group that has lost ranks, or taken in a new one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from .topology import Topology


@dataclass(frozen=True)
class Change:
    """What became of a group.

    Attributes:
        before: the layout that it had.
        numbers: for every rank that was there and is left the number that it had, rising. Ranks
            behind those are new.
        memory_of: ``memory_of(buffer, number)`` is what the rank that had a number has where this
            one has ``buffer``, on memory that was allocated together; though that rank be lost.
            None if it was on another host.
        begun: for every rank of this host that was lost the number of collectives (``begun`` of a
            communicator) that it had begun.
        grown: whether a rank was taken in, though it may be lost again.
    """

    before: Topology
    numbers: tuple[int, ...]
    memory_of: Callable[[NDArray[Any], int], NDArray[Any] | None]
    begun: Mapping[int, int]
    grown: bool = False

    def then(self, later: Change, put_back: int = sys.maxsize) -> Change:
        """Both as one, where more were lost before the first was dealt with.

        Args:
            put_back: how many collectives the group between had begun when all had put back what
                they had changed. Who was lost after more of them had begun none before.
        """
        there = len(self.numbers)
        numbers = tuple(self.numbers[rank] for rank in later.numbers if rank < there)
        known = {self.numbers[r]: n for r, n in later.begun.items() if r < there}
        if not self.grown:
            known = {number: 0 for number, begun in known.items() if begun > put_back}
        return replace(self, numbers=numbers, begun={**self.begun, **known})

    @property
    def lost(self) -> tuple[int, ...]:
        """The numbers of those that are not there any more."""
        return tuple(rank for rank in range(self.before.size) if rank not in self.numbers)
