"""A state as JSON and named arrays, and back, with nothing lost and no code in it.

JSON has no tuples, no keys but texts, and no numbers that are not finite: those are objects with
the key ``"$"``, which says what they are. Arrays are named by their place in the state; what
numpy alone does not know, as bfloat16, is kept as bytes with its dtype and shape beside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = "dict[str, NDArray[Any]]"

_KIND = "$"
# What is deeper is nobody's state, and reading it would end the interpreter.
DEEPEST = 100
_PLAIN = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
}
_AS_BYTES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}


class Broken(ValueError):
    """What was read is not what was written: somebody else wrote it, or it has changed since."""


def flattened(state: Any) -> tuple[Any, Arrays]:
    """A JSON value that stands for a state, and its arrays by name.

    Returns:
        The value, and contiguous arrays, on the memory of the state's where those are.

    Raises:
        TypeError: for anything but numbers, texts, None, arrays and numpy's scalars in lists,
            tuples and dicts; with its place.
    """
    arrays: Arrays = {}

    def keep(value: Any, path: str) -> dict[str, Any]:
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        name, number = path, 1
        while name in arrays:
            number += 1
            name = f"{path}#{number}"
        array = np.asarray(value, order="C")
        dtype = array.dtype.name
        if dtype in _PLAIN:
            arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
            return {_KIND: kind, "name": name}
        if dtype not in _AS_BYTES:
            raise TypeError(f"{path} must be an array of numbers, got dtype {array.dtype}")
        arrays[name] = array.reshape(-1).view(np.uint8)
        return {_KIND: kind, "name": name, "dtype": dtype, "shape": list(array.shape)}

    def walk(value: Any, path: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise TypeError(f"a state must be at most {DEEPEST} levels deep, got more at {path}")
        if isinstance(value, np.ndarray | np.generic):
            return keep(value, path)
        if isinstance(value, float) and not math.isfinite(value):
            return {_KIND: "float", "text": repr(float(value))}
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list | tuple):
            items = [walk(entry, f"{path}/{i}", depth + 1) for i, entry in enumerate(value)]
            return items if isinstance(value, list) else {_KIND: "tuple", "items": items}
        if isinstance(value, Mapping):
            pairs = [(key, walk(entry, f"{path}/{key}", depth + 1)) for key, entry in value.items()]
            counts = isinstance(value, Counter)
            if not counts and _KIND not in value and all(type(key) is str for key, _ in pairs):
                return dict(pairs)
            keyed = [[walk(key, f"{path}: key", depth + 1), entry] for key, entry in pairs]
            return {_KIND: "counter" if counts else "dict", "items": keyed}
        raise TypeError(
            "a state must be of numbers, texts, None, arrays, lists, tuples and dicts, got "
            f"{type(value).__name__} at {path}"
        )

    return walk(state, "state", 0), arrays


def restored(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """The state that a JSON value and its arrays stand for.

    Raises:
        Broken: if they are not what ``flattened`` makes.
    """
    try:
        return _restored(value, arrays, 0)
    except Broken:
        raise
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Broken(f"the state is not as it was written: {error!r}") from None


def _restored(value: Any, arrays: Mapping[str, NDArray[Any]], depth: int) -> Any:
    if depth > DEEPEST:
        raise Broken(f"a state must be at most {DEEPEST} levels deep, got more")
    if isinstance(value, list):
        return [_restored(entry, arrays, depth + 1) for entry in value]
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {key: _restored(entry, arrays, depth + 1) for key, entry in value.items()}
    if value[_KIND] not in _KINDS:
        raise Broken(f"entries must be of {sorted(_KINDS)}, got {value[_KIND]!r}")
    return _KINDS[value[_KIND]](value, arrays, depth + 1)


def _array(value: Any, arrays: Mapping[str, NDArray[Any]], depth: int) -> NDArray[Any]:
    array = arrays[value["name"]]
    if "dtype" in value:
        array = array.view(_AS_BYTES[value["dtype"]]).reshape(value["shape"])
    return array


def _items(value: Any, arrays: Mapping[str, NDArray[Any]], depth: int) -> tuple[Any, ...]:
    return tuple(_restored(entry, arrays, depth) for entry in value["items"])


def _dict(value: Any, arrays: Mapping[str, NDArray[Any]], depth: int) -> dict[Any, Any]:
    return {
        _restored(key, arrays, depth): _restored(entry, arrays, depth)
        for key, entry in value["items"]
    }


def _float(value: Any, arrays: Mapping[str, NDArray[Any]], depth: int) -> float:
    if value["text"] not in ("nan", "inf", "-inf"):
        raise Broken(f"a number that is not finite must be nan or inf, got {value['text']!r}")
    return float(value["text"])


_KINDS: Mapping[str, Callable[[Any, Mapping[str, NDArray[Any]], int], Any]] = {
    "array": _array,
    "scalar": lambda value, arrays, depth: _array(value, arrays, depth)[()],
    "tuple": _items,
    "dict": _dict,
    "counter": lambda value, arrays, depth: Counter(_dict(value, arrays, depth)),
    "float": _float,
}
