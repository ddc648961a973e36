"""The compiled mean that looks before it writes: every number as it would be one by one."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd.comm.reduction.mean_loop import mean_in_place

# Three strips, the last not whole.
COUNT = 2500


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("bad", [[], [0], [1030, 1031], [5, COUNT - 1]], ids=str)
def test_parts_keep_their_own_numbers_where_the_mean_is_not_finite(
    bad: list[int], count: int, dtype: type
) -> None:
    random = np.random.default_rng(count)
    parts = [random.normal(size=COUNT).astype(dtype) for _ in range(count)]
    for number, place in enumerate(bad):
        parts[number % count][place] = [np.nan, np.inf][number % 2]
    before = [part.copy() for part in parts]
    dtype_of, one, total = np.dtype(dtype), dtype(1), dtype(count)
    shift = sum((before[0] - part for part in before[1:]), np.zeros(COUNT, dtype))
    expected = before[0] - shift / total
    loop = mean_in_place(dtype_of, count, True, finite=True)
    assert loop is not None
    assert loop(*parts, *[one] * (count - 1), total) is bool(bad)
    for part, own in zip(parts, before, strict=True):
        wanted = np.where(np.isfinite(expected), expected, own)
        assert part.tobytes() == wanted.tobytes()
