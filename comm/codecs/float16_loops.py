"""Float16 as compiled loops with the bits of numpy, which converts one number at a time.

Integers do all the rounding, so that a compiler can take many numbers together.
``localsgd.comm.compiled`` says when there are such loops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..compiled import compiled
from .codec import Array

_LONG = 16_384
# Of float32, as bits: infinity, 2^-14 (float16's least that is not subnormal), and how far the
# exponents of the two are apart.
_INFINITE, _NORMAL, _APART = np.uint32(0x7F80_0000), np.uint32(0x3880_0000), np.uint32(0x3800_0000)
# 2^-24, float16's least number above zero.
_LEAST = np.float32(2.0**-24)
# So many numbers at a time, which stay in the first-level cache.
_STRIP = 2048


def encode_float16(values: Array, codes: Array) -> None:
    """``codes = values``, float32 to float16: to the nearest, of two equally near the even one."""
    loop = _loop(_encode) if values.size >= _LONG else None
    if loop is not None:
        loop(values.view(np.uint32), codes.view(np.uint16))
        return
    with np.errstate(all="ignore"):
        codes[...] = values


def decode_float16(codes: Array, values: Array) -> None:
    """``values = codes``, float16 to float32."""
    loop = _loop(_decode) if values.size >= _LONG else None
    if loop is not None:
        loop(codes.view(np.uint16), values.view(np.uint32))
        return
    values[...] = codes


@lru_cache
def _loop(function: Callable[..., None]) -> Callable[..., None] | None:
    return compiled(function)


def _encode(values: Array, codes: Array) -> None:
    one, half = np.uint32(1), np.uint32(0xFFF)
    for i in range(values.size):
        bits = values[i]
        size = bits & np.uint32(0x7FFF_FFFF)
        # What is cut off rounds up from a half on, or above a half if what stays is even. Above the
        # largest the carry makes infinity, which is the largest code.
        usual = (size - _APART + half + (size >> np.uint32(13) & one)) >> np.uint32(13)
        usual = min(usual, np.uint32(0x7C00))
        # Subnormal: the digits with their leading one, in units of 2^-24; 0 if all are shifted out.
        cut = min(max(np.uint32(126) - (size >> np.uint32(23)), one), np.uint32(31))
        cut = cut if size < _NORMAL else one
        digits = size & np.uint32(0x7F_FFFF) | np.uint32(0x80_0000)
        small = (digits + (one << (cut - one)) - one + (digits >> cut & one)) >> cut
        # NaN keeps its first digits, but must not become infinity.
        odd = np.uint32(0x7C00) | (size >> np.uint32(13) & np.uint32(0x3FF))
        odd = odd + one if odd == np.uint32(0x7C00) else odd
        found = small if size < _NORMAL else usual
        found = odd if size > _INFINITE else found
        codes[i] = np.uint16(found | (bits >> np.uint32(16) & np.uint32(0x8000)))


def _decode(codes: Array, values: Array) -> None:
    numbers = np.empty(_STRIP, np.float32)
    digits = numbers.view(np.uint32)
    for start in range(0, codes.size, _STRIP):
        part, out = codes[start : start + _STRIP], values[start : start + _STRIP]
        # As if all were subnormal, which is exact; those that are none are put in their place.
        for i in range(part.size):
            numbers[i] = np.float32(np.int32(part[i]) & np.int32(0x3FF)) * _LEAST
        for i in range(part.size):
            code = np.uint32(part[i])
            size = code & np.uint32(0x7FFF)
            usual = (size << np.uint32(13)) + _APART
            usual = usual + _APART if size >= np.uint32(0x7C00) else usual
            found = digits[i] if size < np.uint32(0x400) else usual
            out[i] = found | (code & np.uint32(0x8000)) << np.uint32(16)
