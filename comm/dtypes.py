"""Which numbers can be combined, by which operations, and in which dtype that is done."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .contract import Op

FLOATS = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
INTEGERS = tuple(
    np.dtype(t)
    for t in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
)
DTYPES = FLOATS + INTEGERS
OPS: tuple[Op, ...] = ("mean", "sum", "max", "min")


def work_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which numbers of ``dtype`` are combined: float32 for the half precisions."""
    return np.dtype(np.float32) if dtype in FLOATS and dtype.itemsize == 2 else dtype
