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
    offers = comm.collect([] if anchor is None else anchor.readable(change, begun))
    readers = {number: rank for rank, number in enumerate(change.numbers)}
    for rank, numbers in enumerate(offers):
        for number in numbers:
            readers.setdefault(number, rank)
    for index, buffer in enumerate(buffers):
        numbers = range(change.before.size)
        shards = [change.before.shard(buffer.flat.size, number) for number in numbers]
        lost = [part for number, part in enumerate(shards) if number not in readers]
        for key in made.keys(index):
            whole = _whole(anchor, index, key, shards, readers, comm, change)
            if any(part.start < part.stop for part in lost) and key == made.keys(index)[0]:
                mean = buffer.flat.copy()
                comm.allreduce(mean, "mean", label="what nobody has any more")
                for part in lost:
                    whole[part] = mean[part]
            made.put(index, key, whole)


def _whole(
    anchor: Shards | None,
    index: int,
    key: str,
    shards: Sequence[slice],
    readers: dict[int, int],
    comm: Communicator,
    change: Change,
) -> Array:
    """All shards that somebody can read, on every rank; zeros elsewhere."""
    mine = [
        anchor.read(index, key, number, part.stop - part.start, change)
        for number, part in enumerate(shards)
        if readers.get(number) == comm.rank and anchor is not None
    ]
    found = comm.gather(np.concatenate(mine) if mine else np.zeros(0, np.uint8))
    whole = np.zeros(max(part.stop for part in shards), found[0].dtype)
    places = [0] * comm.size
    for number, part in enumerate(shards):
        if number in readers:
            rank, length = readers[number], part.stop - part.start
            whole[part] = found[rank][places[rank] : places[rank] + length]
            places[rank] += length
    return whole
