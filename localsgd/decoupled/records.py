"""Numbers that one worker writes and others of its host read, without a lock and without a wait.

A record has a sequence counter, which is odd while the record is written: who reads looks at it
before and after, and takes nothing if it has changed. (Aligned words are whole, and processors of
this kind show stores in their order, as the flags of ``comm`` need, too.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from localsgd.comm.contract import Array

Shapes: TypeAlias = "Sequence[tuple[int, np.dtype[Any]]]"

_ALIGNED = 64


class Record:
    """Counters, and arrays beside them, in a block of memory.

    Attributes:
        arrays: as they lie there, shapes ``(n,)``.
    """

    def __init__(self, memory: Array, words: int, shapes: Shapes) -> None:
        """
        Args:
            memory: bytes, shape ``(nbytes(words, shapes),)``, zero at first.
            words: how many counters.
            shapes: length and dtype of every array.
        """
        lengths = _lengths(words, shapes)
        begins = [0, *accumulate(lengths)]
        head = memory[: (1 + words) * 8].view(np.int64)
        self._sequence, self._words = head[:1], head[1:]
        self.arrays: list[Array] = [
            memory[begin : begin + count * dtype.itemsize].view(dtype)
            for begin, (count, dtype) in zip(begins[1:], shapes, strict=False)
        ]

    @staticmethod
    def nbytes(words: int, shapes: Shapes) -> int:
        """The bytes that a record takes, a multiple of a line of the cache."""
        return sum(_lengths(words, shapes))

    def write(self, words: Sequence[int], arrays: Sequence[Array]) -> None:
        """Writes the first counters, and the arrays. For the one who writes."""
        self._sequence[0] += 1
        self._words[: len(words)] = words
        for mine, given in zip(self.arrays, arrays, strict=True):
            mine[...] = given
        self._sequence[0] += 1

    def note(self, index: int, value: int) -> None:
        """Sets one counter that stands for itself. For the one who writes."""
        self._words[index] = value

    def word(self, index: int) -> int:
        """One counter, which may be of a record that is being written."""
        return int(self._words[index])

    def words(self) -> list[int] | None:
        """The counters; None while the record is written."""
        return self._whole([])

    def read(self, into: Sequence[Array]) -> list[int] | None:
        """Copies the arrays, and gives the counters; None while the record is written."""
        return self._whole(into)

    def _whole(self, into: Sequence[Array]) -> list[int] | None:
        before = int(self._sequence[0])
        if before % 2:
            return None
        words: list[int] = self._words.tolist()
        for target, mine in zip(into, self.arrays, strict=False):
            target[...] = mine
        return words if int(self._sequence[0]) == before else None


def _lengths(words: int, shapes: Shapes) -> list[int]:
    sizes = [(1 + words) * 8, *(count * dtype.itemsize for count, dtype in shapes)]
    return [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
