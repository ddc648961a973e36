"""When fragments leave and arrive, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from localsgd.schedules import Streaming


def leaving(schedule: Streaming, last: int) -> dict[int, list[int]]:
    found = {step: list(schedule.leaving(step)) for step in range(1, last + 1)}
    return {step: indices for step, indices in found.items() if indices}


def test_fragments_leave_in_turn() -> None:
    """Offsets 0, 2, 4 of 7: a period need not be a multiple."""
    schedule = Streaming(7, 3)
    assert leaving(schedule, 18) == {
        2: [1],
        4: [2],
        7: [0],
        9: [1],
        11: [2],
        14: [0],
        16: [1],
        18: [2],
    }
    assert [step for step in range(1, 12) if schedule.due(step)] == [2, 4, 7, 9, 11]


def test_what_has_left_arrives_after_the_delay() -> None:
    schedule = Streaming(4, 2, delay=3)
    assert leaving(schedule, 8) == {2: [1], 4: [0], 6: [1], 8: [0]}
    assert [list(schedule.arriving(step)) for step in (1, 2, 3, 4, 5, 6, 7)] == [
        *([], [], [], [], [1], [], [0])
    ]
    assert [step for step in range(1, 10) if schedule.due(step)] == [2, 4, 5, 6, 7, 8, 9]


def test_streaming_begins_after_the_steps_that_are_together() -> None:
    synchronous = Streaming(4, 2, synchronous_steps=3)
    assert [step for step in range(1, 10) if synchronous.of_all(step)] == [1, 2, 3]
    assert leaving(synchronous, 9) == {5: [1], 7: [0], 9: [1]}
    warm = Streaming(4, 2, warmup_steps=3)
    assert [step for step in range(1, 10) if warm.of_all(step)] == [3]
    assert leaving(warm, 9) == {5: [1], 7: [0], 9: [1]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "period must be at least 1, got 0"),
        ((4, 5), "fragments must be at most the period, 4, got 5"),
        ((4, 2, 5), "delay must be at most the period, 4, got 5"),
        ((4, 2, -1), "delay must be at least 0, got -1"),
        ((4, 2, 0, 1, 1), "one of synchronous_steps and warmup_steps must be 0, got 1 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Streaming(*arguments)
