"""The arithmetic of scaled codecs: in numpy, and as compiled loops with the same bits.

``localsgd.comm.compiled`` says when there are such loops; short blocks are not worth loading them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ..compiled import compiled
from .codec import Array

_LONG = 16_384
# The smallest number that is not subnormal.
_LEAST = np.float32(np.finfo(np.float32).tiny)


def encode_int8(values: Array, scales: Array, codes: Array, block: int) -> None:
    """``scale = max |x| / 127``, ``code = round(x / scale)``; 1 where the scale is not finite."""
    loop = _loop(_encode_int8) if values.size >= _LONG else None
    if loop is not None:
        loop(values, scales, codes, block)
        return
    with np.errstate(all="ignore"):
        for index in range(scales.size):
            part = values[index * block : (index + 1) * block]
            scale = np.abs(part).max() / np.float32(127)
            # Below, a quotient would be too coarse for a code.
            scale = np.float32(0) if scale < _LEAST else scale
            scales[index] = scale
            if np.isfinite(scale):
                steps = np.rint(part / scale) if scale > 0 else 0
                codes[index * block : (index + 1) * block] = steps
            else:
                codes[index * block : (index + 1) * block] = 1


def decode_int8(scales: Array, codes: Array, values: Array, block: int) -> None:
    """``x = code · scale``."""
    loop = _loop(_decode_int8) if values.size >= _LONG else None
    if loop is not None:
        loop(scales, codes, values, block)
        return
    with np.errstate(all="ignore"):
        for index in range(scales.size):
            part = slice(index * block, (index + 1) * block)
            np.multiply(codes[part], scales[index], out=values[part], dtype=np.float32)


def encode_e3m0(values: Array, scales: Array, codes: Array, block: int) -> None:
    """``scale = max |x|``; the code is 8 · sign + k for ``scale / 2^k``, k below 7, and 7 for 0."""
    loop = _loop(_encode_e3m0) if values.size >= _LONG else None
    if loop is not None:
        loop(values, scales, codes, block)
        return
    with np.errstate(all="ignore"):
        for index in range(scales.size):
            part = values[index * block : (index + 1) * block]
            scale = np.abs(part).max()
            scales[index] = scale
            sign = np.signbit(part).astype(np.uint8) << 3
            if np.isfinite(scale) and scale > 0:
                bits = (np.abs(part) / scale).view(np.int32)
                # The exponent, and the first bit after it, which says on which side of 1.5 it is.
                power = 127 - (bits >> 23) - (bits >> 22 & 1)
                code = np.where(bits >= _SMALLEST, np.minimum(power, 6), 7)
            else:
                code = np.full(part.size, 7 if scale == 0 else 0)
            codes[index * block : (index + 1) * block] = code.astype(np.uint8) | sign


def decode_e3m0(scales: Array, codes: Array, values: Array, block: int) -> None:
    """``x = ± scale / 2^k``, or 0; two codes lie in a byte, the first in its lower half."""
    loop = _loop(_decode_e3m0) if values.size >= _LONG else None
    if loop is not None:
        loop(scales, codes, values, block, _POWERS)
        return
    with np.errstate(all="ignore"):
        pairs = np.stack([_POWERS[codes & 15], _POWERS[codes >> 4]], axis=1)
        spread = np.repeat(scales, block)[: values.size]
        np.multiply(pairs.reshape(-1)[: values.size], spread, out=values)


_POWERS = np.array([sign * power for sign in (1, -1) for power in (*2.0 ** -np.arange(7), 0)], "f4")
# 2^-7: below it zero is nearer than 2^-6.
_SMALLEST = int(np.float32(2.0**-7).view(np.int32))


@lru_cache
def _loop(function: Callable[..., None]) -> Callable[..., None] | None:
    return compiled(function)


def _encode_int8(values: Array, scales: Array, codes: Array, block: int) -> None:
    for index in range(scales.size):
        part = values[index * block : (index + 1) * block]
        out = codes[index * block : (index + 1) * block]
        most, odd = np.float32(0), False
        for i in range(part.size):
            magnitude = abs(part[i])
            most = magnitude if magnitude > most else most
            odd |= part[i] != part[i]
        scale = most / np.float32(127)
        scale = np.float32(0) if scale < _LEAST else scale
        scale = np.float32(np.nan) if odd else scale
        scales[index] = scale
        if not (scale < np.float32(np.inf)):
            for i in range(part.size):
                out[i] = 1
        elif scale > 0:
            for i in range(part.size):
                out[i] = np.int8(np.rint(part[i] / scale))
        else:
            for i in range(part.size):
                out[i] = 0


def _decode_int8(scales: Array, codes: Array, values: Array, block: int) -> None:
    for index in range(scales.size):
        scale = scales[index]
        part = codes[index * block : (index + 1) * block]
        out = values[index * block : (index + 1) * block]
        for i in range(part.size):
            out[i] = np.float32(part[i]) * scale


def _encode_e3m0(values: Array, scales: Array, codes: Array, block: int) -> None:
    smallest: Any = _SMALLEST
    for index in range(scales.size):
        part = values[index * block : (index + 1) * block]
        out = codes[index * block : (index + 1) * block]
        most, odd = np.float32(0), False
        for i in range(part.size):
            magnitude = abs(part[i])
            most = magnitude if magnitude > most else most
            odd |= part[i] != part[i]
        scales[index] = np.float32(np.nan) if odd else most
        usual = most > 0 and most < np.float32(np.inf) and not odd
        signs = part.view(np.int32)
        rest = np.uint8(7) if most == 0 and not odd else np.uint8(0)
        if usual:
            ratios = np.empty(part.size, np.float32)
            for i in range(part.size):
                ratios[i] = abs(part[i]) / most
            bits = ratios.view(np.int32)
            for i in range(part.size):
                power = 127 - (bits[i] >> 23) - (bits[i] >> 22 & 1)
                power = power if power < 6 else 6
                power = power if bits[i] >= smallest else 7
                out[i] = np.uint8(power | (signs[i] >> 28 & 8))
        else:
            for i in range(part.size):
                out[i] = rest | np.uint8(signs[i] >> 28 & 8)


def _decode_e3m0(scales: Array, codes: Array, values: Array, block: int, powers: Array) -> None:
    for index in range(scales.size):
        scale = scales[index]
        start = index * block
        out = values[start : start + block]
        part = codes[start // 2 : start // 2 + (out.size + 1) // 2]
        for i in range(out.size // 2):
            out[2 * i] = powers[part[i] & 15] * scale
            out[2 * i + 1] = powers[part[i] >> 4] * scale
        if out.size % 2:
            out[out.size - 1] = powers[part[out.size // 2] & 15] * scale
