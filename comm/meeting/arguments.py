"""What the arguments of a communicator must be, checked once, at the edge."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..codecs import Codec, PlacedCodec, check
from ..contract import Array
from ..dtypes import DTYPES, FLOATS, OPS

_NAMES = {dtype.name: dtype for dtype in DTYPES}


def buffer_dtype(dtype: DTypeLike | str) -> np.dtype[Any]:
    """The dtype, if numbers of it can be combined."""
    kind = _NAMES.get(dtype) if isinstance(dtype, str) else None
    if kind is None:
        kind = np.dtype(dtype)
    if kind not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(_NAMES)}, got {dtype!r}")
    return kind


def buffer(name: str, array: Array, *, writeable: bool = True) -> None:
    """Requires a one-dimensional contiguous array of numbers."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(array).__name__}")
    buffer_dtype(array.dtype)
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be one-dimensional and contiguous, got shape {array.shape} "
            f"with strides {array.strides}"
        )
    if writeable and not array.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")


def operation(op: str, dtype: np.dtype[Any], weight: float | None) -> None:
    """Requires an operation that this dtype has, and a weight that it can use."""
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if op == "mean" and dtype not in FLOATS:
        raise TypeError(f"the mean needs a floating-point buffer, got {dtype.name}")
    if weight is None:
        return
    if op != "mean":
        raise ValueError(f"weight goes with op 'mean' alone, got op {op!r}")
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"weight must be finite and at least 0, got {weight}")


def mix(value: float, dtype: np.dtype[Any]) -> None:
    """Requires a number in [0, 1]; 0 for integers, whose differences wrap around."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"mix must lie in [0, 1], got {value}")
    if value and dtype not in FLOATS:
        raise TypeError(f"mix needs a floating-point buffer, got {dtype.name}")


def finite(value: object, op: str, codec: object) -> None:
    """Requires a flag; False but for a mean without a codec."""
    if not isinstance(value, bool):
        raise TypeError(f"finite must be True or False, got {value!r}")
    if value and op != "mean":
        raise ValueError(f"finite goes with op 'mean' alone, got op {op!r}")
    if value and codec is not None:
        raise ValueError("finite must be without a codec, got one")


def codec(value: object, buffer: Array) -> None:
    """Requires what can encode the buffer's numbers, or None."""
    if value is None:
        return
    if not isinstance(value, Codec | PlacedCodec):
        raise TypeError(f"codec must be a Codec, as FLOAT16 is, got {value!r}")
    check(value, buffer.dtype, buffer.size)


def label(value: str) -> None:
    """Requires words."""
    if not isinstance(value, str):
        raise TypeError(f"label must be a string, got {value!r}")


def update(value: object) -> None:
    """Requires a function, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"update must be a function, got {value!r}")


def length(count: int, dtype: np.dtype[Any]) -> int:
    """The number of elements, as Python's own integer, which never overflows."""
    whole_number("count", count, at_least=0)
    most = sys.maxsize // dtype.itemsize
    if count > most:
        raise ValueError(f"count must be at most {most} of {dtype.name}, got {count}")
    return operator.index(count)


def rank(name: str, value: int, size: int) -> None:
    """Requires a rank of a group of ``size``."""
    whole_number(name, value, at_least=0)
    if value >= size:
        raise ValueError(f"{name} must be a rank below {size}, got {value}")


def other(name: str, value: int, rank: int) -> None:
    """Requires another rank than this one."""
    if value == rank:
        raise ValueError(f"{name} must name other ranks than this one, {rank}, got it, too")


def whole_number(name: str, value: int, *, at_least: int) -> None:
    """Requires an integer of at least ``at_least``; booleans and floats are refused."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
