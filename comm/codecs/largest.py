"""Where the largest magnitudes of a block are: in numpy, and by a compiled loop, with one result.

Magnitudes are compared by their bits, by which NaN is the largest; of equal ones the first count.
``localsgd.comm.compiled`` says when there is such a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..compiled import compiled
from .codec import Array

_LONG = 16_384
_MAGNITUDE = np.int32(0x7FFF_FFFF)


def largest(blocks: Array, k: int) -> Array:
    """Of every row of float32 the places of the ``k`` largest magnitudes, rising.

    Args:
        blocks: shape ``(rows, block)``, at most 65,536 long.

    Returns:
        Shape ``(rows, k)``, uint16.
    """
    keys = blocks.view(np.int32)
    places = np.empty((blocks.shape[0], k), np.uint16)
    loop = _compiled() if blocks.size >= _LONG else None
    if loop is not None:
        loop(keys, places, _MAGNITUDE)
        return places
    keys = keys & _MAGNITUDE
    least = np.partition(keys, -k, axis=1)[:, -k, None]
    equal = keys == least
    wanted = k - (keys > least).sum(axis=1, keepdims=True)
    chosen = (keys > least) | (equal & (np.cumsum(equal, axis=1) <= wanted))
    places[...] = np.nonzero(chosen)[1].reshape(places.shape)
    return places


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None] | None:
    return compiled(_largest)


def _largest(keys: Array, places: Array, magnitude: np.int32) -> None:
    rows, block = keys.shape
    k = places.shape[1]
    sizes, found, where = np.empty(block, np.int32), np.empty(block, np.int32), np.arange(block)
    # A byte for each number, of which eight together say at once that none of them is large.
    large = np.zeros(-(-block // 8) * 8, np.uint8)
    eights = large.view(np.uint64)
    # What the last row's least was says about where this row's is. There is none before the first.
    guess = magnitude
    for row in range(rows):
        own = keys[row]
        for i in range(block):
            sizes[i] = own[i] & magnitude
        for i in range(block):
            large[i] = np.uint8(sizes[i] >= guess)
        count = 0
        for eight in range(eights.size):
            if eights[eight] != 0:
                for i in range(8 * eight, min(8 * eight + 8, block)):
                    where[count] = i
                    found[count] = sizes[i]
                    count += large[i]
        if count < k:
            # Too high a guess: any may be among the largest.
            count = block
            for i in range(block):
                where[i] = i
                found[i] = sizes[i]
        # The k-th largest, bit by bit from above, unless a border has just k above it before.
        few, least = found[:count], np.int32(0)
        for bit in range(30, -1, -1):
            trial = np.int32(least | np.int32(1) << np.int32(bit))
            reach = np.int32(0)
            for i in range(count):
                reach += np.int32(few[i] >= trial)
            if reach >= k:
                least = trial
            if reach == k:
                break
        above = np.int32(0)
        for i in range(count):
            above += np.int32(few[i] > least)
        ties, place = k - above, 0
        for i in range(count):
            tie = few[i] == least and ties > 0
            if few[i] > least or tie:
                places[row, place] = where[i]
                place += 1
                ties -= tie
        # A quarter of a power of two lower, for the next row.
        guess = np.int32(max(int(least) - (1 << 21), 0))
