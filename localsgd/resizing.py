"""A training that another number of ranks has saved, as those that load it read it.

Each of those that load reads the files of some that saved, every file by one of them, and they put
together what they find: means, and arrays of which every rank had a part. What one worker alone
had goes to the ranks with its number, and again from the first where more load than saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from localsgd.comm import Topology
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype

PartsOf: TypeAlias = Callable[[int], Sequence[slice]]


@runtime_checkable
class Resizing(Protocol):
    """What has a rule for another number of ranks."""

    def resized_state(self, saved: SavedStates) -> Any:
        """The state that this rank loads. Collective."""


@dataclass(frozen=True)
class SavedStates:
    """What those that saved had under one name.

    Attributes:
        comm: the ranks that load.
        before: the layout of those that saved.
        read: gives the whole state of one of them.
        path: the keys and indices that lead to this part of it.
    """

    comm: Communicator
    before: Topology
    read: Callable[[int], Any]
    path: tuple[Any, ...] = ()

    def at(self, *keys: Any) -> SavedStates:
        """What they had under these keys and indices."""
        return SavedStates(self.comm, self.before, self.read, (*self.path, *keys))

    @property
    def same_size(self) -> bool:
        """Whether as many ranks load as have saved, if in another layout of hosts."""
        return self.comm.size == self.before.size

    @property
    def own_number(self) -> int:
        """The rank whose own state this one takes over."""
        return self.comm.rank % self.before.size

    @property
    def own(self) -> Any:
        """What that rank had."""
        return self.of(self.own_number)

    def of(self, rank: int) -> Any:
        """What one of those that saved had."""
        value = self.read(rank)
        for key in self.path:
            value = value[key]
        return value

    def mine(self) -> Iterator[tuple[int, Any]]:
        """Those that this rank reads, with what they had; each is read by one rank."""
        for rank in range(self.comm.rank, self.before.size, self.comm.size):
            yield rank, self.of(rank)

    def mean(self) -> Array:
        """The mean of an array over those that saved; where as many load, each its own. Collective.

        Workers that were equal are equal to the bit.
        """
        own = np.asarray(self.own)
        if self.same_size:
            return own
        wide, count = np.zeros(own.shape, work_dtype(own.dtype)), 0
        for _, value in self.mine():
            count += 1
            theirs = np.asarray(value).astype(wide.dtype)
            moved = (theirs - wide) / wide.dtype.type(count)
            # Adding zero would take the sign of a zero away.
            wide = theirs if count == 1 else np.where(moved == 0, wide, wide + moved)
        flat = wide.astype(own.dtype).reshape(-1)
        if flat.size:
            self.comm.allreduce(flat, "mean", weight=float(count), label="a resized state")
        return flat.reshape(own.shape)

    def sum(self, count: int, parts_of: PartsOf, share_of: Callable[[int], float]) -> Array:
        """The sum of arrays of which every rank had parts, each by its share. Collective."""
        own = np.asarray(self.own)
        whole = np.zeros(count, own.dtype)
        for rank, value in self.mine():
            begin, share = 0, own.dtype.type(share_of(rank))
            for part in parts_of(rank):
                length = part.stop - part.start
                whole[part] += share * value[begin : begin + length]
                begin += length
        if count:
            self.comm.allreduce(whole, "sum", label="a resized state")
        return whole

    def total(self, value_of: Callable[[int, Any], int]) -> int:
        """The sum of a number over all that saved. Collective."""
        return sum(self.comm.collect(sum(value_of(rank, value) for rank, value in self.mine())))

    def whole(self, count: int, parts_of: PartsOf) -> Array:
        """An array of which every rank had parts; zero where none had any. Collective.

        Args:
            count: its length.
            parts_of: the parts of a rank, rising, as they lie one after the other in what it had.
                Parts of two ranks must be apart.
        """
        pieces: list[tuple[slice, Array]] = []
        for rank, value in self.mine():
            begin = 0
            for part in parts_of(rank):
                length = part.stop - part.start
                pieces.append((part, np.asarray(value)[begin : begin + length]))
                begin += length
        pieces.sort(key=lambda piece: (piece[0].start, piece[0].stop))
        empty = np.asarray(self.own)[:0]
        values = np.concatenate([empty, *(values for _, values in pieces)])
        return gathered([part for part, _ in pieces], values, count, self.comm)[0]


def gathered(
    parts: Sequence[slice], values: Array, count: int, comm: Communicator
) -> tuple[Array, Sequence[slice]]:
    """An array of which every rank has parts, on all ranks. Collective.

    Args:
        parts: of the array, rising, those of this rank; of several ranks they may overlap, and the
            lowest rank's count.
        values: what is there, one part after the other, shape ``(n,)``.
        count: the length of the array.

    Returns:
        The array, zero where nobody has it, and the parts that nobody has.
    """
    having = comm.collect([[part.start, part.stop] for part in parts])
    cuts = sorted({0, count, *(end for of_rank in having for part in of_rank for end in part)})
    places = [slice(start, stop) for start, stop in pairwise(cuts)]
    givers = [_first(place, having) for place in places]
    mine, begin = [], 0
    for part in parts:
        for place, giver in zip(places, givers, strict=True):
            if giver == comm.rank and part.start <= place.start and place.stop <= part.stop:
                here = begin + place.start - part.start
                mine.append(values[here : here + place.stop - place.start])
        begin += part.stop - part.start
    found = comm.gather(np.concatenate([values[:0], *mine]))
    whole = np.zeros(count, found[0].dtype)
    taken = [0] * comm.size
    for place, giver in zip(places, givers, strict=True):
        if giver is not None:
            length = place.stop - place.start
            whole[place] = found[giver][taken[giver] : taken[giver] + length]
            taken[giver] += length
    return whole, [place for place, giver in zip(places, givers, strict=True) if giver is None]


def _first(place: slice, having: Sequence[Sequence[Sequence[int]]]) -> int | None:
    for rank, parts in enumerate(having):
        if any(start <= place.start and place.stop <= stop for start, stop in parts):
            return rank
    return None
