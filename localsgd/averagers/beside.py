"""An anchor whose next round is stepped beside it, and takes its place when it arrives.

So a round on its way can be given up: what was agreed on last has not changed. Ranks of a host read
each other's marks, which say what each of the two places has, also of a rank that was lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localsgd.averagers.anchor import Anchor
from localsgd.comm.changes import Change
from localsgd.comm.contract import Array, Communicator

_NOTHING = 0


class Beside:
    """The two places of one anchor.

    Attributes:
        version: of what was agreed on last, one more in every round; alike on all ranks.
    """

    def __init__(self, anchor: Anchor, place: Anchor, comm: Communicator) -> None:
        """Collective.

        Args:
            anchor: what was agreed on last.
            place: another of the same parameters, whose values do not count.
        """
        self._places, self._now, self._rank = (anchor, place), 0, comm.rank
        self.version = _NOTHING + 1
        self._marks = comm.allocate(len(self._places), np.int64)
        self._marks[:] = self.version, _NOTHING

    @property
    def anchor(self) -> Anchor:
        """What was agreed on last."""
        return self._places[self._now]

    @property
    def next(self) -> Anchor:
        """What a round makes of it."""
        return self._places[1 - self._now]

    def begin(self) -> None:
        """Copies what was agreed on to where a round steps it."""
        self._marks[1 - self._now] = _NOTHING
        self.next.copy(self.anchor)

    def end(self) -> None:
        """Takes note that the round has stepped all of this rank's shards."""
        self._marks[1 - self._now] = self.version + 1

    def turn(self) -> Anchor:
        """Makes what the round has made what was agreed on last, and returns it."""
        self._now = 1 - self._now
        self.version += 1
        return self.anchor

    def become(self, version: int) -> None:
        """Takes note that the anchor has the values of a version that it had before."""
        self.version = version
        self._marks[1 - self._now] = _NOTHING
        self._marks[self._now] = version

    @property
    def rounds(self) -> int:
        """How many outer steps were taken."""
        return self.anchor.rounds

    def keys(self, index: int) -> Sequence[str]:
        """What there is of arena number ``index``, the anchor first."""
        return self.anchor.keys(index)

    def readable(self, change: Change, begun: int) -> list[int]:
        """The lost ranks of this host that have this version in one of their places."""
        return [number for number in change.lost if self._place_of(number, change) is not None]

    def read(self, index: int, key: str, number: int, length: int, change: Change) -> Array:
        """The shard of a rank that shared this one's host, and may be lost."""
        place = self.anchor if number == self._rank else self._place_of(number, change)
        assert place is not None
        return place.read(index, key, number, length, change)

    def _place_of(self, number: int, change: Change) -> Anchor | None:
        marks = change.memory_of(self._marks, number)
        if marks is None:
            return None
        found = [p for p, mark in zip(self._places, marks, strict=True) if mark == self.version]
        return found[0] if found else None
