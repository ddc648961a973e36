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
# So many numbers are looked at together first: mostly none of them is large.
_GROUP = 16
_SAMPLE = 128


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
    if rows == 0:
        return
    found, where = np.empty(block, np.int32), np.empty(block, np.int32)
    # Of the first row a sample says about where the border is.
    step = max(block // _SAMPLE, 1)
    sample = np.sort(keys[0, ::step] & magnitude)
    guess = sample[max(sample.size - 4 - 2 * k * sample.size // block, 0)]
    for row in range(rows):
        count = 0
        # What the last row's least was is a good guess; if it was too high, all are looked at.
        for attempt in range(2):
            count = 0
            border = guess if attempt == 0 else np.int32(0)
            for start in range(0, block, _GROUP):
                stop = min(start + _GROUP, block)
                most = np.int32(0)
                for i in range(start, stop):
                    most = max(most, keys[row, i] & magnitude)
                if most >= border:
                    for i in range(start, stop):
                        key = keys[row, i] & magnitude
                        where[count] = i
                        found[count] = key
                        count += key >= border
            if count >= k:
                break
        least = np.sort(found[:count])[count - k]
        above = 0
        for i in range(count):
            above += found[i] > least
        ties, place = k - above, 0
        for i in range(count):
            if found[i] > least:
                places[row, place] = where[i]
                place += 1
            elif found[i] == least and ties > 0:
                places[row, place] = where[i]
                place += 1
                ties -= 1
        # A quarter of a power of two lower, for the next row.
        guess = np.int32(max(least - (1 << 21), 0))
