"""Who sums which part of a buffer, and who owns the result.

Each host owns an equal part of the buffer and each of its ranks an equal piece of that part: its
*shard*. On every host the ranks also divide the parts of the other hosts among themselves; a rank
*holds* the pieces it sums and writes back there. The *atoms* are the common refinement of all
those divisions, so that each has one owner and, on each host, one holder. Even hosts give one atom
a shard and every message goes to the rank of the same place, a lane; uneven hosts give a few more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ..topology import Topology, piece


@dataclass(frozen=True)
class Atom:
    """Consecutive elements with one owner, and one holder on each host.

    Attributes:
        start, stop: the elements of the buffer.
        home: the host whose rank owns them.
        holders: for every host, the rank that sums and writes them there; the owner at home.
    """

    start: int
    stop: int
    home: int
    holders: tuple[int, ...]

    @property
    def owner(self) -> int:
        return self.holders[self.home]

    def chunk(self, index: int, chunks: int) -> slice:
        """The ``index``-th of ``chunks`` nearly equal pieces."""
        return piece(slice(self.start, self.stop), index, chunks)


@lru_cache(maxsize=256)
def atoms(count: int, topology: Topology) -> tuple[Atom, ...]:
    """The atoms of a buffer of ``count`` elements, in order; none is empty."""
    found = []
    for home in range(len(topology.hosts)):
        part = piece(slice(0, count), home, len(topology.hosts))
        cuts = {part.stop}
        for ranks in topology.hosts:
            cuts.update(piece(part, i, len(ranks)).start for i in range(len(ranks)))
        for start, stop in pairwise(sorted(cuts)):
            holders = tuple(_holder(part, ranks, start) for ranks in topology.hosts)
            found.append(Atom(start, stop, home, holders))
    return tuple(found)


def chunks_needed(found: tuple[Atom, ...], length: int) -> int:
    """Into how many chunks to cut every atom so that none exceeds ``length`` elements."""
    longest = max((atom.stop - atom.start for atom in found), default=0)
    return -(-longest // length)


def _holder(part: slice, ranks: tuple[int, ...], start: int) -> int:
    for index, rank in enumerate(ranks):
        own = piece(part, index, len(ranks))
        if own.start <= start < own.stop:
            return rank
    raise AssertionError(f"element {start} lies outside {part}")
