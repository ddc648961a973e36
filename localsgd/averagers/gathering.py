"""Whole arrays from the pieces that ranks have of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from localsgd.comm.contract import Array, Communicator


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
    begins = dict(zip([part.start for part in parts], _begins(parts), strict=True))
    mine = []
    for place, giver in zip(places, givers, strict=True):
        if giver == comm.rank:
            part = next(p for p in parts if p.start <= place.start and place.stop <= p.stop)
            begin = begins[part.start] + place.start - part.start
            mine.append(values[begin : begin + place.stop - place.start])
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


def _begins(parts: Sequence[slice]) -> list[int]:
    """Where each part begins in the values."""
    ends = np.cumsum([0, *(part.stop - part.start for part in parts)])
    return [int(end) for end in ends[:-1]]
