"""Numbers that travel in a narrower dtype."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from .float16_loops import decode_float16, encode_float16


class Cast:
    """Sends every number rounded to a narrower dtype; what is too large for it becomes infinite."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self.name = self._dtype.name

    def encoded_bytes(self, count: int) -> int:
        return count * self._dtype.itemsize

    def encode(self, values: NDArray[Any], message: NDArray[np.uint8]) -> None:
        codes = message.view(self._dtype)
        if self._dtype == np.float16 and values.dtype == np.float32:
            encode_float16(values, codes)
            return
        with np.errstate(all="ignore"):
            codes[...] = values

    def decode(self, message: NDArray[np.uint8], values: NDArray[Any]) -> None:
        codes = message.view(self._dtype)
        if self._dtype == np.float16 and values.dtype == np.float32:
            decode_float16(codes, values)
        else:
            values[...] = codes


FLOAT16 = Cast(np.float16)
BFLOAT16 = Cast(ml_dtypes.bfloat16)
