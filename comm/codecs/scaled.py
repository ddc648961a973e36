"""Numbers in few bits, each block of them by a scale of its own.

A message holds the blocks' scales, float32, and then the codes; the last block may be shorter. The
arithmetic is float32's. A block with a value that is not finite has such a scale, and so decodes to
none that is.

Sources: int8 as in Dettmers et al. (arXiv 2110.02861), with a linear grid; E3M0 as in Streaming
DiLoCo (arXiv 2501.18512), which leaves the zero open; two bits by Max's levels for normal numbers
(Quantizing for minimum distortion, 1960); the scaled sign of Karimireddy et al. (arXiv 1901.09847).
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
        block: how many numbers share a scale.
    """

    bits: int

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
        return 4 * -(-count // self.block) + -(-count * self.bits // 8)

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
        end = 4 * -(-count // self.block)
        return message[:end].view(np.float32), message[end:]

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

    @abstractmethod
    def _encode(self, values: Array, scales: Array, codes: Message) -> None:
        """Fills the scales, shape ``(blocks,)``, and the codes."""

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
    """Four levels, which are best for normal numbers of the block's root mean square.

    Of a block with one number much larger than the others little is kept; error feedback then
    takes many rounds.
    """

    bits = 2

    def _encode(self, values: Array, scales: Array, codes: Message) -> None:
        with np.errstate(all="ignore"):
            blocks = self._blocks(values).astype(np.float64)
            lengths = self._lengths(values.size)
            scales[...] = np.sqrt(np.square(blocks).sum(axis=1) / lengths)
            outer = np.abs(values) > self._spread(scales, values.size) * np.float32(_BETWEEN)
        wide = np.zeros(4 * codes.size, np.uint8)
        wide[: values.size] = np.signbit(values) | outer.view(np.uint8) << 1
        codes[...] = wide[::4] | wide[1::4] << 2 | wide[2::4] << 4 | wide[3::4] << 6

    def _decode(self, scales: Array, codes: Message, values: Array) -> None:
        levels = _QUADS[codes].reshape(-1)[: values.size]
        with np.errstate(all="ignore"):
            np.multiply(levels, self._spread(scales, values.size), out=values)

    def _lengths(self, count: int) -> Array:
        lengths = np.full(-(-count // self.block), float(self.block))
        if count % self.block:
            lengths[-1] = count % self.block
        return lengths


class Sign(TwoBit):
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


# The levels for a normal number of variance 1, and the border between two of one sign.
_LEVELS, _BETWEEN = (0.4528, 1.510), 0.9816


def _quads() -> Array:
    inner, outer = _LEVELS
    of_code = np.array([inner, -inner, outer, -outer], np.float32)
    codes = np.arange(256)
    return np.stack([of_code[codes >> 2 * place & 3] for place in range(4)], axis=1)


_QUADS = _quads()
