"""Fire lists of the schedules. Steps are counted from 1; PyTorch's lists count calls from 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localsgd import Schedule, aligned, every, post_local

Make = Callable[..., Schedule]


def fires(schedule: Schedule, upto: int) -> list[int]:
    return [step for step in range(1, upto + 1) if schedule.due(step)]


@pytest.mark.parametrize(
    ("period", "warmup", "calls"),
    [
        (4, 0, [0, 4, 8, 12]),
        (4, 10, [10, 14, 18, 22, 26]),
        (4, 13, [13, 17, 21, 25, 29]),
        (1, 2, [2, 3, 4, 5]),
    ],
)
def test_post_local_fires_in_pytorchs_periodic_phase(
    period: int, warmup: int, calls: list[int]
) -> None:
    assert fires(post_local(period, warmup), calls[-1] + 1) == [call + 1 for call in calls]


@pytest.mark.parametrize(
    ("period", "warmup", "calls"),
    [(4, 0, [0, 4, 8]), (4, 13, [16, 20, 24, 28]), (4, 12, [12, 16]), (2, 10, [10, 12, 14])],
)
def test_aligned_fires_at_multiples_of_the_period_from_the_start_of_training(
    period: int, warmup: int, calls: list[int]
) -> None:
    assert fires(aligned(period, warmup), calls[-1] + 1) == [call + 1 for call in calls]


def test_every_fires_at_the_end_of_each_period() -> None:
    assert fires(every(4), 13) == [4, 8, 12]
    assert fires(every(1), 4) == [1, 2, 3, 4]


def test_every_stays_synchronous_at_first_and_then_leaves_whole_periods() -> None:
    assert fires(every(4, synchronous_steps=3), 16) == [1, 2, 3, 7, 11, 15]


@pytest.mark.parametrize("make", [post_local, aligned])
def test_no_round_before_any_step(make: Make) -> None:
    assert not make(4).due(0)
    assert not every(4).due(0)
    assert not every(4, synchronous_steps=2).due(0)


@given(st.integers(1, 50), st.integers(0, 100))
def test_post_local_holds_one_round_a_period_past_warmup(period: int, warmup: int) -> None:
    fired = fires(post_local(period, warmup), warmup + 5 * period)
    assert fired[0] == warmup + 1
    assert set(np.diff(fired)) == {period}


@pytest.mark.parametrize("period", [0, -3])
@pytest.mark.parametrize("make", [every, post_local, aligned])
def test_a_period_below_one_step_is_refused(make: Make, period: int) -> None:
    with pytest.raises(ValueError, match=f"period must be at least 1, got {period}"):
        make(period)


@pytest.mark.parametrize("make", [post_local, aligned])
def test_warmup_is_checked_before_the_period(make: Make) -> None:
    with pytest.raises(ValueError, match="warmup_steps must be at least 0, got -1"):
        make(0, -1)


@pytest.mark.parametrize("number", [2.5, 2.0, True, float("nan"), "4", None])
@pytest.mark.parametrize("make", [every, post_local, aligned])
def test_numbers_of_steps_must_be_integers(make: Make, number: object) -> None:
    with pytest.raises(TypeError, match="period must be an integer"):
        make(number)
    with pytest.raises(TypeError, match="steps must be an integer"):
        every(4, synchronous_steps=number)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="warmup_steps must be an integer"):
        post_local(4, number)  # type: ignore[arg-type]


def test_numpy_integers_are_integers() -> None:
    assert every(np.int32(4)) == every(4)  # type: ignore[arg-type]


def test_schedules_are_values_with_a_readable_repr() -> None:
    assert post_local(4, 2) == post_local(4, 2) != post_local(4, 3)
    assert len({every(8), every(8), aligned(8)}) == 2
    assert repr(every(8)) == "every(8)"
    assert repr(every(8, synchronous_steps=5)) == "every(8, synchronous_steps=5)"
    assert repr(post_local(4, 2)) == "post_local(4, warmup_steps=2)"


def test_any_object_with_due_is_a_schedule() -> None:
    class Once:
        def due(self, step: int) -> bool:
            return step == 3

    assert isinstance(Once(), Schedule)
    assert isinstance(every(2), Schedule)
