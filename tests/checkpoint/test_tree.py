"""A state survives being written as JSON and arrays: types, bits and order."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from localsgd.checkpoint.tree import DEEPEST, Broken, flattened, restored

DTYPES = [
    *(bool, np.int8, np.int64, np.uint8, np.uint64, np.float16, np.float32, np.float64),
    *(np.complex64, ml_dtypes.bfloat16, np.dtype(">f4")),
]
ARRAYS = st.sampled_from(DTYPES[:8]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=3))
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ARRAYS
KEYS = st.text() | st.integers() | st.booleans() | st.tuples(st.integers(), st.text())
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(KEYS, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=8,
)


def through_text(state: Any) -> Any:
    value, kept = flattened(state)
    return restored(json.loads(json.dumps(value, allow_nan=False)), kept)


def same(one: Any, other: Any) -> bool:
    """Equal in type and to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and (one.tobytes() == other.tobytes())
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and all(map(same, one.values(), other.values()))
    return repr(one) == repr(other)


@given(STATES)
def test_a_state_comes_back_as_it_was(state: Any) -> None:
    assert same(through_text({"it": state}), {"it": state})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back(dtype: Any) -> None:
    """Of big-endian numbers the values."""
    for array in (np.arange(6).reshape(2, 3).T.astype(dtype), np.array(1).astype(dtype)):
        found = through_text([array])[0]
        assert found.shape == array.shape and (found == array).all()
        assert found.dtype == array.dtype.newbyteorder("=")
    scalar = np.dtype(dtype).newbyteorder("=").type(1)
    assert same(through_text([scalar])[0], scalar)


def test_arrays_are_named_by_their_place_and_share_memory() -> None:
    """And no two have one name, whatever the keys of a user look like."""
    inner = np.ones(3)
    state = {"a": {"b": inner}, "a/b": np.zeros(2)}
    _, kept = flattened(state)
    assert list(kept) == ["state/a/b", "state/a/b#2"]
    assert np.shares_memory(kept["state/a/b"], inner)
    assert same(through_text(state), state)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"f": print}, "got builtin_function_or_method at state/f"),
        ([{1, 2}], "got set at state/0"),
        ({"t": np.array(["x"])}, "state/t must be an array of numbers, got dtype <U1"),
        ({"o": np.array([None])}, "state/o must be an array of numbers, got dtype object"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(state: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        flattened(state)


def test_what_is_too_deep_is_neither_written_nor_read() -> None:
    state: Any = 1
    value: Any = 1
    for _ in range(DEEPEST + 1):
        state, value = [state], [value]
    with pytest.raises(TypeError, match="at most 100 levels deep"):
        flattened(state)
    with pytest.raises(Broken, match="at most 100 levels deep"):
        restored(value, {})


@pytest.mark.parametrize(
    "value",
    [
        {"$": "array", "name": "missing"},
        {"$": "array"},
        {"$": "code", "text": "print()"},
        {"$": "float", "text": "1e5"},
        {"$": ["array"]},
        {"$": "dict", "items": [[1]]},
        {"$": "dict", "items": [[[], 1]]},
        {"$": "array", "name": "x", "dtype": "object", "shape": [3]},
        {"$": "array", "name": "x", "dtype": "bfloat16", "shape": [1 << 62]},
        {"$": "array", "name": "x", "dtype": "complex128", "shape": [1]},
    ],
)
def test_what_nobody_wrote_is_an_error(value: Any) -> None:
    with pytest.raises(Broken):
        restored([value], {"x": np.zeros(6, np.uint8)})
