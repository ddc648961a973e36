"""Numbers that travel in a narrower dtype."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray


class Cast:
    """Sends every number rounded to a narrower dtype."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self.name = self._dtype.name

    def encoded_bytes(self, count: int) -> int:
        return count * self._dtype.itemsize

    def encode(self, values: NDArray[Any], message: NDArray[np.uint8]) -> None:
        message.view(self._dtype)[...] = values

    def decode(self, message: NDArray[np.uint8], values: NDArray[Any]) -> None:
        values[...] = message.view(self._dtype)


FLOAT16 = Cast(np.float16)
BFLOAT16 = Cast(ml_dtypes.bfloat16)
