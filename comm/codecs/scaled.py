"""Numbers in few bits, each block of them by a scale of its own, or two.

A message holds the blocks' scales, float32, and then the codes; the last block may be shorter. The
arithmetic is float32's. A block with a value that is not finite has such a scale, and so decodes to
none that is.

Sources: int8 as in Dettmers et al. (arXiv 2110.02861), with a linear grid; E3M0 as in Streaming
DiLoCo (arXiv 2501.18512), which leaves the zero open; two bits with Max's border for normal numbers
(Quantizing for minimum distortion, 1960), and its levels as they are in the block; the scaled sign
of Karimireddy et al. (arXiv 1901.09847).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from .codec import Array, Message, as_float32, require_floats
from .scaled_loops import decode_e3m0, decode_int8, encode_e3m0, encode_int8

_BLOCK = 256


class Scaled(ABC):
    """The base of codecs with a scale for each block.

    Attributes:
        bits: of a code.
        scales: how many a block has.
        block: how many numbers share them.
    """

    bits: int
    scales: int = 1

    def __init__(self, block: int = _BLOCK) -> None:
        """
        Raises:
            ValueError: unless ``block`` is a multiple of 8 of at least 8.
        """
        if isinstance(block, bool) or not isinstance(block, int) or block < 8 or block % 8:
            raise ValueError(f"block must be a multiple of 8 of at least 8, got {block!r}")
        self.block = block
        self.name = f"{type(self).__name__.lower()}({block})"

    def check(self, dtype: np.dtype[Any], count: int) -> None:
        require_floats(self.name, dtype)

    def encoded_bytes(self, count: int) -> int:
        return self._scale_bytes(count) + -(-count * self.bits // 8)

    def encode(self, values: Array, message: Message) -> None:
        scales, codes = self._split(message, values.size)
        self._encode(as_float32(values), scales, codes)

    def decode(self, message: Message, values: Array) -> None:
        scales, codes = self._split(message, values.size)
        if values.dtype == np.float32:
            self._decode(scales, codes, values)
        else:
            wide = np.empty(values.size, np.float32)
            self._decode(scales, codes, wide)
            values[...] = wide

    def _split(self, message: Message, count: int) -> tuple[Array, Message]:
        end = self._scale_bytes(count)
        return message[:end].view(np.float32), message[end:]

    def _scale_bytes(self, count: int) -> int:
        return 4 * self.scales * -(-count // self.block)

    def _blocks(self, values: Array) -> Array:
        """The values by block, shape ``(blocks, block)``; the last filled up with zeros."""
        blocks = -(-values.size // self.block)
        if values.size == blocks * self.block:
            return values.reshape(blocks, self.block)
        filled = np.zeros(blocks * self.block, values.dtype)
        filled[: values.size] = values
        return filled.reshape(blocks, self.block)

    def _spread(self, scales: Array, count: int) -> Array:
        """Every number's scale, shape ``(count,)``."""
        return np.repeat(scales, self.block)[:count]

    def _lengths(self, count: int) -> Array:
        """How many numbers every block has, shape ``(blocks,)``, float64."""
        lengths = np.full(-(-count // self.block), float(self.block))
        if count % self.block:
            lengths[-1] = count % self.block
        return lengths

    @abstractmethod
    def _encode(self, values: Array, scales: Array, codes: Message) -> None:
        """Fills the scales, shape ``(blocks * self.scales,)``, and the codes."""

    @abstractmethod
    def _decode(self, scales: Array, codes: Message, values: Array) -> None:
        """Fills the values, float32."""


class Int8(Scaled):
    """255 equal steps from minus to plus the largest magnitude of a block.

    ``stochastic`` rounds up with the probability of the rest, so that the value is the mean of what
    is decoded; the random numbers are those of ``keyed``.
    """

    bits = 8

    def __init__(self, block: int = _BLOCK, *, stochastic: bool = False, seed: int = 0) -> None:
        super().__init__(block)
        self._stochastic, self._seed, self._key = stochastic, seed, 0
        if stochastic:
            self.name = f"int8({block}, stochastic, seed {seed})"

    def keyed(self, key: int) -> Int8:
        if not self._stochastic:
            return self
        made = Int8(self.block, stochastic=True, seed=self._seed)
        made._key = key
        return made

    def _encode(self, values: Array, scales: Array, codes: Message) -> None:
        if not self._stochastic:
            encode_int8(values, scales, codes.view(np.int8), self.block)
            return
        blocks = self._blocks(values)
        with np.errstate(all="ignore"):
            scales[...] = np.abs(blocks).max(axis=1) / np.float32(127)
            scales[scales < np.finfo(np.float32).tiny] = 0
            steps = values / self._spread(scales, values.size)
            random = np.random.Generator(np.random.Philox(key=[self._seed, self._key]))
            steps = np.floor(steps + random.random(values.size, np.float32))
            steps[~np.isfinite(steps)] = 1
            codes.view(np.int8)[...] = np.clip(steps, -127, 127)
        _settle(scales, codes.view(np.int8), self.block, np.int8(1))

    def _decode(self, scales: Array, codes: Message, values: Array) -> None:
        decode_int8(scales, codes.view(np.int8), values, self.block)


class E3M0(Scaled):
    """Four bits: a sign, and a power of two of seven below the block's largest magnitude, or zero.

    ``scale · {1, 1/2, …, 1/64, 0}``, the nearest of them.
    """

    bits = 4

    def _encode(self, values: Array, scales: Array, codes: Message) -> None:
        wide = np.zeros(values.size + values.size % 2, np.uint8)
        encode_e3m0(values, scales, wide[: values.size], self.block)
        np.left_shift(wide[1::2], 4, out=codes)
        codes |= wide[::2]

    def _decode(self, scales: Array, codes: Message, values: Array) -> None:
        decode_e3m0(scales, codes, values, self.block)


class TwoBit(Scaled):
    """A sign, and whether a magnitude is large: each of the two classes of a block by its mean.

        large where |x| > 0.9816 · sqrt(mean of x²)
        C(x) = sign(x) · mean of |x| over the class

    Of a class of ``n`` the means keep ``n · mean²`` of the square, which no other level would, so
    that of any block of ``d`` numbers |x - C(x)|² is at most (1 - 1/d) |x|². The border is the best
    for normal numbers.
    """

    bits = 2
    scales = 2

    def _encode(self, values: Array, scales: Array, codes: Message) -> None:
        with np.errstate(all="ignore"):
            sizes = np.abs(self._blocks(values))
            lengths = self._lengths(values.size)
            squares = np.square(sizes, dtype=np.float64).sum(axis=1)
            border = (_BORDER * np.sqrt(squares / lengths)).astype(np.float32)
            # Where a number is not finite, nothing is above the border, and all have its scale.
            large = sizes > border[:, None]
            among = large.sum(axis=1, dtype=np.int32)
            levels = scales.reshape(-1, 2)
            # Both summed: what a spike leaves of the whole sum would be rounding alone.
            # By bits, since infinity times zero is no zero; np.where takes five times as long.
            big = (sizes.view(np.uint32) * large).view(np.float32)
            small_sum = (sizes - big).sum(axis=1, dtype=np.float64)
            levels[:, 0] = small_sum / np.maximum(lengths - among, 1)
            levels[:, 1] = big.sum(axis=1, dtype=np.float64) / np.maximum(among, 1)
        wide = np.zeros(4 * codes.size, np.uint8)
        wide[: values.size] = np.signbit(values)
        wide[: values.size] |= large.reshape(-1)[: values.size].view(np.uint8) << 1
        codes[...] = wide[::4] | wide[1::4] << 2 | wide[2::4] << 4 | wide[3::4] << 6

    def _decode(self, scales: Array, codes: Message, values: Array) -> None:
        levels = np.stack([scales, -scales], axis=1).reshape(-1)
        of_block = self._spread(np.arange(0, levels.size, 4), values.size)
        of_block += _QUADS.take(codes).view(np.uint8)[: values.size]
        np.take(levels, of_block, out=values, mode="clip")


class Sign(Scaled):
    """The sign of every number, and the block's mean magnitude; zero counts as positive."""

    bits = 1

    def _encode(self, values: Array, scales: Array, codes: Message) -> None:
        with np.errstate(all="ignore"):
            blocks = np.abs(self._blocks(values).astype(np.float64))
            scales[...] = blocks.sum(axis=1) / self._lengths(values.size)
        codes[...] = np.packbits(values < 0, bitorder="little")

    def _decode(self, scales: Array, codes: Message, values: Array) -> None:
        negative = np.unpackbits(codes, count=values.size, bitorder="little")
        signs = 1 - 2 * negative.astype(np.float32)
        with np.errstate(all="ignore"):
            np.multiply(signs, self._spread(scales, values.size), out=values)


def _settle(scales: Array, codes: Array, block: int, code: np.int8) -> None:
    """Gives numbers of a scale that is not finite a code that does not hide it."""
    for index in np.flatnonzero(~np.isfinite(scales)):
        codes[index * block : (index + 1) * block] = code


# Of normal numbers of variance 1, between two levels of one sign.
_BORDER = 0.9816
# The four codes in every byte, as the four bytes of a number, which are taken at once.
_QUADS = (np.arange(256)[:, None] >> np.arange(0, 8, 2) & 3).astype(np.uint8).view(np.uint32)
