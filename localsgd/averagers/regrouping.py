"""The outer state of a group that has lost ranks, or has a new one: new shards of the old ones.

What a lost rank owned is read from its memory by another rank of its host. It counts as long as
that rank had not begun the round that failed, in which it may have changed. Otherwise, and where a
host was lost, that part of the anchor becomes the mean of the parameters as they are, and the rest
of the state zero: it begins anew, and the next round takes the mean there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from localsgd.averagers.anchor import Anchor, Flat
from localsgd.comm.changes import Change
from localsgd.comm.contract import Array, Communicator
from localsgd.resizing import gathered


class Shards(Protocol):
    """What ranks of a host can read of each other's anchors."""

    @property
    def rounds(self) -> int:
        """How many outer steps were taken."""

    def keys(self, index: int) -> Sequence[str]:
        """What there is of arena number ``index``, the anchor first."""

    def readable(self, change: Change, begun: int) -> list[int]:
        """The lost ranks of this host whose shards are as before the round that failed."""

    def read(self, index: int, key: str, number: int, length: int, change: Change) -> Array:
        """The shard of a rank that shared this one's host."""


def regrouped(
    anchor: Shards | None,
    made: Anchor,
    buffers: Sequence[Flat],
    comm: Communicator,
    change: Change,
    begun: int,
) -> None:
    """Fills the shards of ``made`` with what can be read of those of ``anchor``. Collective.

    Args:
        anchor: of the group as it was, as before the round that failed; None on a new rank.
        made: of the group as it is.
        buffers: the parameters, as before that round.
        begun: how many collectives the group had begun before it.
    """
    made.rounds = comm.collect(0 if anchor is None else anchor.rounds)[0]
    mine: list[int] = []
    if anchor is not None:
        mine = [change.numbers[comm.rank], *anchor.readable(change, begun)]
    for index, buffer in enumerate(buffers):
        count, before = buffer.flat.size, change.before
        parts = [(before.shard(count, number), number) for number in mine]
        parts.sort(key=lambda entry: (entry[0].start, entry[0].stop))
        for key in made.keys(index):
            read = [
                anchor.read(index, key, number, part.stop - part.start, change)
                for part, number in parts
                if anchor is not None
            ]
            values = np.concatenate(read) if read else np.zeros(0, np.uint8)
            whole, lost = gathered([part for part, _ in parts], values, count, comm)
            if lost and key == made.keys(index)[0]:
                mean = buffer.flat.copy()
                comm.allreduce(mean, "mean", label="what nobody has any more")
                for part in lost:
                    whole[part] = mean[part]
            made.put(index, key, whole)
