"""The quadratic synchronization rule: closed form 14, and rounds by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import Arena, Communicator, ModelAverager, Schedule, lr, quadratic, run_threads


@pytest.mark.parametrize(("rate", "period"), [(0.008, 4), (0.004, 19), (0.001, 306)])
def test_a_round_is_as_long_as_the_closed_form(rate: float, period: int) -> None:
    """Closed form 14: (0.0175 / 0.008)² = 4.78, and so on."""
    schedule = quadratic(4, 0.0175, lambda _: rate)
    assert [step for step in range(1, 2 * period + 1) if schedule.due(step)] == [period, 2 * period]


def after(schedule: Schedule, last: int) -> list[int]:
    return [step for step in range(1, last + 1) if schedule.due(step)]


def test_the_rate_is_that_of_the_rounds_first_step() -> None:
    """Rates 0.5, 0.25, 1/12 after 0, 1, 5 steps: periods 1, 4, 36, whatever is asked first."""
    schedule = quadratic(1, 0.5, lambda step: 0.5 / (1 + step))
    assert after(schedule, 49) == [1, 5, 41]
    again = quadratic(1, 0.5, lambda step: 0.5 / (1 + step))
    assert again.due(41) and not again.due(40) and again.due(1) and not again.due(0)


def test_other_powers_and_the_end_of_training() -> None:
    assert after(quadratic(2, 0.5, lambda _: 0.1, power=1.0), 12) == [5, 10]
    ending = quadratic(4, 1.0, lambda _: 0.25, total_steps=20)
    assert after(ending, 59) == [16, 20, 36, 52]
    assert not after(quadratic(4, 1.0, lambda _: 0.0), 1000)


def test_steps_together_come_first() -> None:
    assert after(quadratic(2, 1.0, lambda _: 1.0, synchronous_steps=3), 8) == [1, 2, 3, 5, 7]
    assert after(quadratic(2, 1.0, lambda _: 1.0, warmup_steps=3), 8) == [5, 7]


def test_it_goes_with_the_learning_rate_of_a_run() -> None:
    """All ranks average at the same steps, fewer and fewer times."""

    def work(comm: Communicator) -> list[int]:
        arena = Arena({"x": np.zeros(3)}, comm)
        falling = lr.cosine(60)
        schedule = quadratic(2, 0.2, lambda step: falling.at(step, 0.1), total_steps=60)
        averager = ModelAverager(schedule, comm)
        found = []
        for step in range(1, 61):
            arena.flat[:] += comm.rank
            if averager.average_parameters(arena):
                found.append(step)
        return found

    first, second = run_threads(2, work)
    assert first == second
    gaps = np.diff([0, *first])
    assert gaps[0] == 4 and first[-1] == 60 and (np.diff(gaps[:-1]) >= 0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: quadratic(0, 1.0, float), ValueError, "base must be at least 1, got 0"),
        (lambda: quadratic(1, 0.0, float), ValueError, "alpha must be above 0, got 0.0"),
        (lambda: quadratic(1, 1.0, 0.1), TypeError, "rate must be a function of the step, got 0.1"),
        (
            lambda: quadratic(1, 1.0, lambda _: -1.0).due(3),
            ValueError,
            "the learning rate must be at least 0, got -1.0",
        ),
        (
            lambda: quadratic(1, 1.0, float, synchronous_steps=1, warmup_steps=1),
            ValueError,
            "synchronous_steps or with warmup_steps, got 1 and 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
