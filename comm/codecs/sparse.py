"""Few of the numbers: the largest of every block, or some chosen at random; the others are zero.

Sources: top-k of chunks as in DeMo (arXiv 2411.19870) and SparseLoCo (arXiv 2508.15706), whose
values go in 2 bits; random-k as in Stich et al., Sparsified SGD with memory (arXiv 1809.07599).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .cast import Cast
from .codec import Array, Codec, Message, as_float32, check, keyed, require_floats
from .largest import largest
from .scaled import Scaled


class TopK:
    """The ``k`` numbers of largest magnitude of every block, and where they are, in two bytes each.

    Of a last block that is shorter, its share, at least one. Values that are not finite come first.
    They go as float32, or as another codec writes them; the rest is zero.
    """

    def __init__(self, k: int, block: int = 4096, *, values: Scaled | Cast | None = None) -> None:
        """
        Args:
            k: how many of a block, and at most so many of a shorter one.
            block: how many numbers share their places.
            values: how those that were chosen go, one after another; ``TwoBit()`` in SparseLoCo.

        Raises:
            TypeError: if ``values`` is another codec than one of all numbers.
            ValueError: unless ``block`` is from 1 to 65,536 and ``k`` from 1 to ``block``.
        """
        if not 1 <= block <= 65_536:
            raise ValueError(f"block must be from 1 to 65536, got {block}")
        if not 1 <= k <= block:
            raise ValueError(f"k must be from 1 to the block, {block}, got {k}")
        if values is not None and not isinstance(values, Scaled | Cast):
            raise TypeError(
                f"values must be a codec that keeps all numbers, as TwoBit(), got {values!r}"
            )
        self.k, self.block = k, block
        self.values: Codec | None = values
        self.name = f"top {k} of {block}{'' if values is None else f' in {values.name}'}"

    def check(self, dtype: np.dtype[Any], count: int) -> None:
        require_floats(self.name, dtype)
        if self.k > count > 0:
            raise ValueError(f"k must be at most the {count} numbers of the buffer, got {self.k}")
        if self.values is not None:
            check(self.values, dtype, self._sent(count))

    def keyed(self, key: int) -> TopK:
        made = TopK(self.k, self.block)
        made.name = self.name
        made.values = None if self.values is None else keyed(self.values, key)
        return made

    def encoded_bytes(self, count: int) -> int:
        sent = self._sent(count)
        return 2 * sent + (4 * sent if self.values is None else self.values.encoded_bytes(sent))

    def encode(self, values: Array, message: Message) -> None:
        values = as_float32(values)
        full = values.size // self.block * self.block
        places = np.empty((full // self.block, self.k), np.uint16)
        if full:
            places[...] = largest(values[:full].reshape(-1, self.block), self.k)
        tail = self._of_tail(values.size)
        places_of_tail = largest(values[full:].reshape(1, -1), tail)[0] if tail else ()
        sent = self._sent(values.size)
        where = message[: 2 * sent].view(np.uint16)
        where[: places.size], where[places.size :] = places.reshape(-1), places_of_tail
        chosen = values[self._indices(where, values.size)]
        if self.values is None:
            message[2 * sent :].view(np.float32)[...] = chosen
        else:
            # In memory of its own, where scales begin at multiples of their size.
            written = np.empty(self.values.encoded_bytes(sent), np.uint8)
            self.values.encode(chosen, written)
            message[2 * sent :] = written

    def decode(self, message: Message, values: Array) -> None:
        sent = self._sent(values.size)
        where = message[: 2 * sent].view(np.uint16)
        chosen = message[2 * sent :]
        if self.values is None:
            chosen = chosen.view(np.float32)
        else:
            written, chosen = chosen.copy(), np.empty(sent, np.float32)
            self.values.decode(written, chosen)
        values[...] = 0
        values[self._indices(where, values.size)] = chosen

    def _sent(self, count: int) -> int:
        return count // self.block * self.k + self._of_tail(count)

    def _of_tail(self, count: int) -> int:
        return -(-(count % self.block) * self.k // self.block)

    def _indices(self, where: Array, count: int) -> Array:
        """Where the numbers are whose places in their blocks are given."""
        found: Array = _starts(count, self.block, self.k, self._of_tail(count)) + where
        return found


@lru_cache(maxsize=16)
def _starts(count: int, block: int, k: int, of_tail: int) -> Array:
    """Where the block begins of each number that is sent: ``k`` a block, and those of the tail."""
    full = count // block
    return np.repeat(np.arange(full + 1) * block, [*[k] * full, of_tail])


class RandomK:
    """A share of the numbers, chosen at random, as float32; the choice is a key in the message.

    ``unbiased`` sends them divided by the share, so that the mean of what is decoded is the value;
    error feedback would make that diverge. Random numbers are those of ``keyed``.
    """

    def __init__(self, share: float, *, unbiased: bool = False, seed: int = 0) -> None:
        """
        Raises:
            ValueError: unless ``share`` is above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        self.share, self.unbiased, self._seed, self._key = share, unbiased, seed, 0
        self.name = f"random {share:g}{', unbiased' if unbiased else ''}, seed {seed}"

    def check(self, dtype: np.dtype[Any], count: int) -> None:
        require_floats(self.name, dtype)

    def keyed(self, key: int) -> RandomK:
        made = RandomK(self.share, unbiased=self.unbiased, seed=self._seed)
        made._key = key
        return made

    def encoded_bytes(self, count: int) -> int:
        return 16 + 4 * self._sent(count)

    def encode(self, values: Array, message: Message) -> None:
        message[:16].view(np.uint64)[...] = self._seed, self._key
        values = as_float32(values)
        chosen = values[self._chosen(message, values.size)]
        if self.unbiased and values.size:
            chosen *= np.float32(values.size / self._sent(values.size))
        message[16:].view(np.float32)[...] = chosen
        # None that is not finite may be left out in silence.
        if values.size and not np.isfinite(values).all():
            message[16:].view(np.float32)[...] = np.nan

    def decode(self, message: Message, values: Array) -> None:
        values[...] = 0
        values[self._chosen(message, values.size)] = message[16:].view(np.float32)

    def _sent(self, count: int) -> int:
        return min(count, max(1, round(count * self.share)))

    def _chosen(self, message: Message, count: int) -> Array:
        # Raw words, whose stream numpy promises to keep from version to version.
        words = np.random.Philox(key=message[:16].view(np.uint64)).random_raw(count)
        sent = self._sent(count)
        if sent == count:
            return np.arange(count)
        return np.sort(np.argpartition(words, sent)[:sent])
