"""The compiled mean and numpy's give the same bits, and both those of the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd.comm.reduction.arithmetic import Scratch
from localsgd.comm.reduction.mean_loop import compiled_mean
from oracle import same_bits, shifted_mean, some_values

COUNT = 5_003
WEIGHTS: dict[str, list[float]] = {
    "two equal": [1.0, 1.0],
    "three equal": [1.0, 1.0, 1.0],
    "seven": [0.1, 0.7, 0.3, 0.9, 0.2, 0.5, 0.6],
    "some zero": [0.0, 0.25, 0.0, 0.75, 0.5],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_compiled_loop_gives_the_bits_of_numpy_and_of_the_formula(
    dtype: Any, weights: list[float]
) -> None:
    parts = [some_values(rank, COUNT, dtype) for rank in range(len(weights))]
    compiled = Scratch(COUNT, np.dtype(dtype), large=True)
    steps = Scratch(COUNT, np.dtype(dtype), large=False)
    assert compiled_mean(np.dtype(dtype), 2, 1) is not None
    expected = shifted_mean(parts, weights)
    assert same_bits(compiled.combine("mean", parts, weights), expected)
    assert same_bits(steps.combine("mean", parts, weights), expected)


@pytest.mark.parametrize("large", [True, False], ids=["compiled", "numpy"])
def test_result_may_be_written_over_every_part(large: bool) -> None:
    parts = [some_values(rank, COUNT, np.float32) for rank in range(3)]
    expected = shifted_mean(parts, [1.0] * 3)
    Scratch(COUNT, np.dtype(np.float32), large=large).combine(
        "mean", parts, [1.0] * 3, [parts[1], parts[0], parts[2]]
    )
    assert all(same_bits(part, expected) for part in parts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "weights",
    [*WEIGHTS.values(), [0.5, 0.25, 0.25], [1.0] * 16, [1.0] * 17],
    ids=[*WEIGHTS, "sum of 1", "sixteen", "seventeen"],
)
@pytest.mark.parametrize("large", [True, False], ids=["compiled", "numpy"])
def test_all_parts_become_their_mean(large: bool, weights: list[float], dtype: Any) -> None:
    """One loop for up to 16 parts; strips above, and where a weight is 0."""
    parts = [some_values(rank, COUNT, dtype) for rank in range(len(weights))]
    expected = shifted_mean(parts, weights)
    scratch = Scratch(COUNT, np.dtype(dtype), large=large)
    loop = scratch.loop_of("mean", weights, None, finite=False)
    assert (loop is not None) == (large and len(weights) <= 16 and min(weights) > 0)
    if loop is not None:
        loop(slice(0, COUNT), parts)
    else:
        scratch.combine("mean", parts, weights, parts)
    assert all(same_bits(part, expected) for part in parts)


@pytest.mark.parametrize("large", [True, False], ids=["compiled", "numpy"])
def test_all_parts_become_their_sum(large: bool) -> None:
    parts = [some_values(rank, COUNT, np.float32) for rank in range(3)]
    expected = (parts[0] + parts[1]) + parts[2]
    Scratch(COUNT, np.dtype(np.float32), large=large).combine("sum", parts, [1.0] * 3, parts)
    assert all(same_bits(part, expected) for part in parts)


def test_opposite_values_near_the_maximum_overflow_as_documented() -> None:
    top = np.full(4, np.finfo(np.float32).max, np.float32)
    with np.errstate(over="ignore"):
        mean = Scratch(4, np.dtype(np.float32)).combine("mean", [top, -top], [1.0, 1.0])
    assert np.isinf(mean).all()
