"""One worker's messages to and from its neighbours in a round of gossip.

Every rank knows from graph, size and round whom it sends to and hears from, and starts all messages
before it waits for one; so no order of ranks can lock. Before the first number neighbours compare
what they are about to do, and one that cannot mix with some still serves the others, who know
nothing of it. Buffers go in windows, so that what comes takes little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np

from localsgd.comm import MismatchError, NotFiniteError
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.errors import name_ranks
from localsgd.gossip.graphs import Matrix

# Elements of a window.
WINDOW = 1 << 18

# For every neighbour, and this rank, in rising order: its values of a window.
Parts: TypeAlias = Mapping[int, Array]


class Neighbours:
    """Whom one worker hears from and tells, and by which weights."""

    def __init__(self, comm: Communicator, weights: Matrix) -> None:
        self._comm, rank = comm, comm.rank
        row, column = weights[rank], weights[:, rank]
        self.weights = {peer: float(row[peer]) for peer in np.flatnonzero(row).tolist()}
        self._sources = [peer for peer in self.weights if peer != rank]
        self._dests = [peer for peer in np.flatnonzero(column).tolist() if peer != rank]
        self._all = sorted({*self._sources, rank})

    def compare(self, words: str, step: int, *, lost: bool) -> ValueError | None:
        """What there is to raise after this round, if a neighbour is about to do something else.

        Both sides of such a pair find out. From here on neither sends to the other, and what a
        source would give is this rank's own.

        Args:
            lost: whether some of this rank's numbers are not finite; nobody mixes with them.
        """
        key = int.from_bytes(blake2b(words.encode(), digest_size=7).digest(), "big")
        peers = sorted({*self._sources, *self._dests})
        header = np.array([-step if lost else step, key], np.int64)
        found = {peer: np.empty_like(header) for peer in peers}
        self._comm.exchange(dict.fromkeys(peers, header), found)
        differs = {peer: not np.array_equal(found[peer], header) for peer in peers}
        others = [peer for peer in peers if differs[peer] or lost]
        self._sources = [peer for peer in self._sources if peer not in others]
        self._dests = [peer for peer in self._dests if peer not in others]
        spoilt = {peer for peer in peers if found[peer][0] < 0}
        spoilt |= {self._comm.rank} if lost else set()
        if spoilt:
            return NotFiniteError(
                f"parameters must be finite after step {step}, got some that are not on "
                f"{name_ranks(sorted(spoilt))}",
                [(int(rank in spoilt), 0) for rank in range(self._comm.size)],
            )
        if not others:
            return None
        mine, theirs = f"on rank {self._comm.rank}", f"on rank {others[0]}"
        if found[others[0]][0] != step:
            return MismatchError(
                f"neighbours must stand at the same step, got {step} {mine} and "
                f"{found[others[0]][0]} {theirs}"
            )
        return MismatchError(
            f"neighbours must mix the same, got {words} {mine} and something else {theirs}"
        )

    def gather(self, values: Array) -> dict[int, Array]:
        """A small array of every source, and this rank's own, in rising order of ranks."""
        places = {peer: np.empty_like(values) for peer in self._sources}
        self._comm.exchange(dict.fromkeys(self._dests, values), places)
        return {peer: places.get(peer, values) for peer in self._all}

    def each_window(
        self, buffers: Sequence[Array], use: Callable[[slice, Sequence[Parts]], None]
    ) -> None:
        """Calls ``use(place, parts)`` for every window of buffers that are equally long.

        ``parts`` are for every buffer the values of all sources and this rank's own, before
        ``use`` has changed any of that window.
        """
        for start in range(0, buffers[0].size, WINDOW):
            place = slice(start, min(start + WINDOW, buffers[0].size))
            use(place, [self.gather(buffer[place]) for buffer in buffers])


def weighted_mean(parts: Parts, weights: Mapping[int, float]) -> Array:
    """``Σ w_j x_j`` for weights that sum to 1: the shifted mean, in rising order of ranks.

    As the group's own mean it keeps the bits of identical values, and of equal weights it has its
    bits.
    """
    ranks = [rank for rank in parts if weights.get(rank)]
    first, count = parts[ranks[0]], len(ranks)
    wide = _wide(first)
    equal = len({weights[rank] for rank in ranks}) == 1
    shift = np.zeros_like(wide)
    for rank in ranks[1:]:
        difference = wide - _wide(parts[rank])
        shift += difference if equal else difference * wide.dtype.type(weights[rank])
    if equal:
        shift /= wide.dtype.type(count)
    result: Array = (wide - shift).astype(first.dtype, copy=False)
    return result


def weighted_sum(parts: Parts, weights: Mapping[int, float]) -> Array:
    """``Σ w_j x_j``, in rising order of ranks."""
    ranks = [rank for rank in parts if weights.get(rank)]
    total = np.zeros_like(_wide(parts[ranks[0]]))
    for rank in ranks:
        total += _wide(parts[rank]) * total.dtype.type(weights[rank])
    return total


def _wide(values: Array) -> Array:
    return values if values.dtype.itemsize >= 4 else values.astype(np.float32)
