"""PyTorch's periodic averager: its fire lists, values, warnings and errors (P1-P7)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from localsgd import (
    NON_MEMBER,
    Arena,
    Communicator,
    MismatchError,
    PeriodicModelAverager,
    run_threads,
    solo,
)
from workers import LAYOUTS, outcomes


def calls_that_averaged(averager: PeriodicModelAverager, arena: Arena, upto: int) -> list[int]:
    return [call for call in range(upto + 1) if averager.average_parameters(arena)]


@pytest.mark.parametrize(
    ("period", "warmup", "calls"),
    [
        (4, 0, [0, 4, 8, 12]),
        (4, 10, [10, 14, 18, 22, 26]),
        (4, 13, [13, 17, 21, 25, 29]),
    ],
)
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_fire_lists(size: int, hosts: str, period: int, warmup: int, calls: list[int]) -> None:
    def work(comm: Communicator) -> list[int]:
        averager = PeriodicModelAverager(period, warmup, comm)
        return calls_that_averaged(averager, Arena({"w": np.ones(2)}, comm), calls[-1])

    assert run_threads(size, work, hosts=hosts) == [calls] * size


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_values_are_the_mean_exactly_when_it_fires(size: int, hosts: str) -> None:
    """Workers add rank+1 at each call; warm-up 2, period 3: means after calls 2 and 5."""

    def work(comm: Communicator) -> list[float]:
        averager = PeriodicModelAverager(3, warmup_steps=2, comm=comm)
        arena, seen = Arena({"w": np.zeros(1)}, comm), []
        for _ in range(7):
            arena["w"] += comm.rank + 1
            averager.average_parameters(arena)
            seen.append(float(arena["w"][0]))
        return seen

    mean = (size + 1) / 2
    for rank, seen in enumerate(run_threads(size, work, hosts=hosts)):
        own = rank + 1
        expected = [own, 2 * own, 3 * mean]
        expected += [3 * mean + own, 3 * mean + 2 * own, 6 * mean, 6 * mean + own]
        np.testing.assert_allclose(seen, expected, rtol=1e-14)


def test_a_period_of_one_warns_at_the_callers_line() -> None:
    with pytest.warns(UserWarning, match="period 1 averages parameters after every step") as seen:
        averager = PeriodicModelAverager(1, comm=solo())
    assert seen[0].filename == __file__
    assert calls_that_averaged(averager, Arena({"w": np.ones(1)}, solo()), 3) == [0, 1, 2, 3]


def test_longer_periods_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeriodicModelAverager(2, comm=solo())


@pytest.mark.parametrize(
    ("period", "warmup", "error", "message"),
    [
        (0, 0, ValueError, "period must be at least 1, got 0"),
        (-3, 0, ValueError, "period must be at least 1, got -3"),
        (4, -1, ValueError, "warmup_steps must be at least 0, got -1"),
        (0, -1, ValueError, "warmup_steps must be at least 0, got -1"),
        (1, -1, ValueError, "warmup_steps must be at least 0, got -1"),
        (2.5, 0, TypeError, "period must be an integer, got 2.5"),
        (float("nan"), 0, TypeError, "period must be an integer, got nan"),
        (True, 0, TypeError, "period must be an integer, got True"),
        (4, 1.0, TypeError, "warmup_steps must be an integer, got 1.0"),
    ],
)
def test_invalid_numbers_are_refused_on_every_rank(
    period: Any, warmup: Any, error: type[Exception], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for outcome in outcomes(2, lambda comm: PeriodicModelAverager(period, warmup, comm)):
            with pytest.raises(error, match=message):
                raise outcome


def test_an_invalid_number_of_one_rank_is_an_error_on_all() -> None:
    own, other = outcomes(2, lambda comm: PeriodicModelAverager(4 * comm.rank, comm=comm))
    assert type(own) is ValueError
    assert isinstance(other, MismatchError)
    assert "got on rank 0: ValueError: period must be at least 1, got 0" in str(other)


def test_different_warmups_are_an_error_on_every_rank() -> None:
    for outcome in outcomes(2, lambda comm: PeriodicModelAverager(4, comm.rank, comm)):
        assert isinstance(outcome, MismatchError)
        assert "post_local(4, warmup_steps=1) on rank 1" in str(outcome)


def test_period_and_warmup_can_be_read_and_not_set() -> None:
    averager = PeriodicModelAverager(4, warmup_steps=13, comm=solo())
    assert (averager.period, averager.warmup_steps, averager.step) == (4, 13, 0)
    for name in ("period", "warmup_steps"):
        with pytest.raises(AttributeError):
            setattr(averager, name, 2)
    assert repr(averager) == "PeriodicModelAverager(post_local(4, warmup_steps=13))"


def test_a_worker_outside_the_group_counts() -> None:
    averager = PeriodicModelAverager(4, comm=NON_MEMBER)
    assert calls_that_averaged(averager, Arena({"w": np.ones(1)}, solo()), 5) == []
    assert averager.step == 6


def test_one_averager_of_two_optimizers_counts_every_call() -> None:
    averager, arena = PeriodicModelAverager(4, comm=solo()), Arena({"w": np.ones(1)}, solo())
    for _ in range(3):
        averager.average_parameters(arena)
        averager.average_parameters(arena)
    assert averager.step == 6
