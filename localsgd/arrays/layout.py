"""Where each named array lies in one flat buffer, and which arrays may be given a place there.

A layout is nothing but names, shapes, offsets and a dtype. Names keep their order and arrays
follow each other without padding, so a buffer holds exactly the bytes of its parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from localsgd.comm.contract import Array

DTYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
)


@dataclass(frozen=True)
class Layout:
    """Named shapes laid end to end.

    Attributes:
        names: the names, in order.
        shapes: the shape under each name.
        dtype: the dtype of all.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, params: Mapping[str, NDArray[Any]]) -> Layout:
        """The layout of arrays that ``check_parameters`` has found valid."""
        arrays = tuple(params.values())
        return cls(tuple(params), tuple(a.shape for a in arrays), arrays[0].dtype)

    @cached_property
    def parts(self) -> Mapping[str, slice]:
        """For every name its part of a flat buffer."""
        ends = list(accumulate((prod(shape) for shape in self.shapes), initial=0))
        return {
            name: slice(start, stop)
            for name, start, stop in zip(self.names, ends, ends[1:], strict=False)
        }

    def views(self, flat: Array) -> dict[str, Array]:
        """For every name its shaped view of ``flat``, shape ``(count,)``."""
        return {
            name: flat[part].reshape(shape)
            for (name, part), shape in zip(self.parts.items(), self.shapes, strict=True)
        }

    @cached_property
    def count(self) -> int:
        """How many elements a buffer of this layout has."""
        return sum(prod(shape) for shape in self.shapes)

    def lines(self) -> list[str]:
        """One line a parameter, for people and for comparison between ranks."""
        return [
            f"parameter {name!r} {self.dtype.name}{list(shape)}"
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]


def check_parameters(params: object) -> None:
    """Raises unless ``params`` can be laid out: a mapping of names to arrays of one dtype.

    Raises:
        TypeError, ValueError: as ``check_arrays``; ValueError also if dtypes differ.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a mapping of names to arrays, got {_kind(params)}")
    check_arrays(params)
    first, *others = params.items()
    for name, array in others:
        if array.dtype != first[1].dtype:
            raise ValueError(
                f"parameters of one arena must have one dtype, got {first[0]!r} {first[1].dtype} "
                f"and {name!r} {array.dtype}: make an arena for each dtype"
            )


def check_arrays(params: Mapping[str, NDArray[Any]]) -> None:
    """Raises unless these are distinct arrays of floats that can be written.

    Raises:
        TypeError: for a name that is no string, anything but a plain numpy array, or a dtype
            that is not in ``DTYPES``.
        ValueError: if there are none, or an array is read-only or shares memory with another.
    """
    if not params:
        raise ValueError("params must hold at least one parameter, got none")
    for name, array in params.items():
        if not isinstance(name, str):
            raise TypeError(f"parameter names must be strings, got {name!r}")
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"parameter {name!r} must be a plain numpy array, got {_kind(array)}")
        if array.dtype not in DTYPES:
            choices = ", ".join(dtype.name for dtype in DTYPES)
            raise TypeError(f"parameter {name!r} must be one of {choices}, got {array.dtype}")
        if not array.flags.writeable:
            raise ValueError(f"parameter {name!r} must be writeable, got a read-only array")
        if array.size > 1 and any(
            not step and extent > 1 for step, extent in zip(array.strides, array.shape, strict=True)
        ):
            raise ValueError(f"parameter {name!r} must not overlap itself, got a stride of 0")
    _check_distinct(params.items())


def _check_distinct(items: Iterable[tuple[str, NDArray[Any]]]) -> None:
    spans = sorted(
        (
            (*np.lib.array_utils.byte_bounds(array), name, array)
            for name, array in items
            if array.size
        ),
        key=lambda span: span[:3],
    )
    open_spans: list[tuple[int, int, str, NDArray[Any]]] = []
    for span in spans:
        open_spans = [earlier for earlier in open_spans if earlier[1] > span[0]]
        for earlier in open_spans:
            if _overlap(earlier[3], span[3]):
                raise ValueError(
                    f"parameters must not overlap in memory, got {earlier[2]!r} and {span[2]!r} "
                    "on the same bytes"
                )
        open_spans.append(span)


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> bool:
    try:
        # type: numpy's stubs know only the two symbolic limits
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
