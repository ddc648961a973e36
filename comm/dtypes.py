"""Which numbers can be combined, by which operations, in which dtype, and which are finite."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .contract import Array, Op

FLOATS = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
INTEGERS = tuple(
    np.dtype(t)
    for t in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
)
DTYPES = FLOATS + INTEGERS
# The bits of the exponent in half precisions, at which numpy is slow. NaN and infinity alone have
# all of them set.
_EXPONENTS = {FLOATS[0]: 0x7C00, FLOATS[1]: 0x7F80}
OPS: tuple[Op, ...] = ("mean", "sum", "max", "min")


def work_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which numbers of ``dtype`` are combined: float32 for the half precisions."""
    return np.dtype(np.float32) if dtype in FLOATS and dtype.itemsize == 2 else dtype


def all_finite(values: Array) -> bool:
    """Whether every number of a block, shape ``(n,)``, is finite."""
    exponent = _EXPONENTS.get(values.dtype)
    if exponent is not None:
        return not values.size or int((values.view(np.uint16) & exponent).max()) < exponent
    return bool(np.isfinite(values).all())


def not_finite(values: Array) -> tuple[int, int]:
    """How many numbers are not finite, and the place of the first of them."""
    places = np.flatnonzero(~np.isfinite(values))
    return places.size, int(places[0]) if places.size else 0
