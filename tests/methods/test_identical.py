"""Identical replicas keep their bits at the sizes that sum-and-divide gets wrong."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import Arena, Communicator, LocalSGD, optim, run_threads
from oracle import same_bits, some_values

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
LAYOUTS = {3: ["3", "2+1"], 5: ["5", "3+2"], 6: ["6", "3+2+1"], 7: ["7", "4+3", "3+2+2"]}


def specials(dtype: Any) -> np.ndarray:
    """Signed zeros, subnormals, the smallest normal numbers, and those near the maximum."""
    info = ml_dtypes.finfo(dtype)
    found = [0.0, info.smallest_subnormal, 3 * info.smallest_subnormal, info.tiny, info.max]
    found.append(np.nextafter(info.max, dtype(0)) if dtype != ml_dtypes.bfloat16 else info.max)
    return np.array([*found, *(-value for value in found)], dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("size", LAYOUTS)
def test_rounds_of_identical_workers_change_no_bit(size: int, dtype: Any) -> None:
    values = np.concatenate([some_values(0, 10_000, dtype), specials(dtype)])

    def body(comm: Communicator) -> None:
        arena = Arena({"w": values}, comm)
        training = LocalSGD(optim.SGD(arena, lr=0.0), period=1)
        for weight in (None, 1 + comm.rank):
            if weight is not None:
                training.record_samples(weight)
            training.step()
            assert same_bits(arena.flat, values)

    for hosts in LAYOUTS[size]:
        run_threads(size, body, hosts=hosts)


def test_sum_and_divide_would_not() -> None:
    """What the test above would see: 14 % of float32 elements change at three workers."""
    values = some_values(0, 10_000, np.float32)
    changed = (values + values + values) / np.float32(3) != values
    assert 0.10 < changed.mean() < 0.20
