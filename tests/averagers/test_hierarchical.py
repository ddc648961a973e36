"""Levels: which group averages after which step, with which values, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from localsgd import (
    NON_MEMBER,
    Arena,
    Communicator,
    HierarchicalModelAverager,
    MismatchError,
    run_threads,
    solo,
)
from workers import outcomes


def values_of_ranks(
    size: int, levels: Any, calls: int, *, warmup: int = 0, hosts: str | None = None
) -> list[list[float]]:
    """After each call, started from rank r holding r: the values of all ranks."""

    def work(comm: Communicator) -> list[float]:
        averager = HierarchicalModelAverager(levels, warmup, comm)
        arena, seen = Arena({"w": np.zeros(1)}, comm), []
        for _ in range(calls):
            arena["w"][...] = comm.rank
            fired = averager.average_parameters(arena)
            seen.append(float(arena["w"][0]))
            assert fired or seen[-1] == comm.rank
        return seen

    return [list(values) for values in zip(*run_threads(size, work, hosts=hosts), strict=True)]


PAIRS, ALL, NONE = [0.5, 0.5, 2.5, 2.5], [1.5] * 4, [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("hosts", ["4", "2+2", "3+1", "0,2/1,3"])
@pytest.mark.parametrize("levels", [{2: 2, 4: 4}, {4: 4, 2: 2}])
def test_values_of_two_levels(levels: dict[int, int], hosts: str) -> None:
    expected = [ALL, NONE, PAIRS, NONE, ALL, NONE, PAIRS]
    assert values_of_ranks(4, levels, 7, hosts=hosts) == expected


def test_values_of_three_levels() -> None:
    none = [float(rank) for rank in range(8)]
    pairs = [0.5, 0.5, 2.5, 2.5, 4.5, 4.5, 6.5, 6.5]
    fours, everyone = [1.5] * 4 + [5.5] * 4, [3.5] * 8
    assert values_of_ranks(8, {2: 2, 4: 4, 8: 8}, 9) == [
        everyone,
        none,
        pairs,
        none,
        fours,
        none,
        pairs,
        none,
        everyone,
    ]


def test_the_largest_group_that_is_due_wins_whatever_the_order_and_periods() -> None:
    """Periods 2 (pairs) and 3 (all) meet at multiples of 6; with 4 (pairs) and 2 (all) always."""
    expected = [ALL, NONE, PAIRS, ALL, PAIRS, NONE, ALL]
    assert values_of_ranks(4, {2: 2, 3: 4}, 7) == expected
    assert values_of_ranks(4, {3: 4, 2: 2}, 7) == expected
    assert values_of_ranks(4, {4: 2, 2: 4}, 5) == [ALL, NONE, ALL, NONE, ALL]


def fired(size_of_round: list[list[float]]) -> dict[int, int]:
    """For every call that averaged, how many ranks share rank 0's value."""
    none = [float(rank) for rank in range(len(size_of_round[0]))]
    return {
        call: values.count(values[0]) for call, values in enumerate(size_of_round) if values != none
    }


def test_warmup_does_not_move_the_periods() -> None:
    assert fired(values_of_ranks(8, {2: 2, 4: 4, 8: 8}, 25, warmup=10)) == {
        10: 2,
        12: 4,
        14: 2,
        16: 8,
        18: 2,
        20: 4,
        22: 2,
        24: 8,
    }
    assert fired(values_of_ranks(2, {4: 2}, 29, warmup=13)) == {16: 2, 20: 2, 24: 2, 28: 2}


@pytest.mark.parametrize(
    ("hosts", "within"),
    [
        ("2+2", [0.5, 0.5, 2.5, 2.5]),
        ("3+1", [1.0, 1.0, 1.0, 3.0]),
        ("0,2/1,3", [1.0, 2.0, 1.0, 2.0]),
    ],
)
def test_levels_can_be_taken_from_the_hosts(hosts: str, within: list[float]) -> None:
    levels = {4: "world", 2: "host"}
    assert values_of_ranks(4, levels, 5, hosts=hosts) == [ALL, NONE, within, NONE, ALL]


def test_hosts_of_one_worker_each_still_meet_everywhere() -> None:
    assert values_of_ranks(2, {1: "host", 2: "world"}, 3, hosts="1+1") == [
        [0.5, 0.5],
        [0.0, 1.0],
        [0.5, 0.5],
    ]


def test_a_single_host_is_the_world() -> None:
    assert values_of_ranks(3, {2: "host"}, 3) == [[1.0] * 3, [0.0, 1.0, 2.0], [1.0] * 3]


def test_numbers_hosts_and_the_world_can_be_mixed() -> None:
    """Hosts of 3 and 1: the largest has 3 workers, so "host" wins over pairs where both are due."""
    levels = {2: 2, 4: "host", 8: "world"}
    none, pairs, within = [0.0, 1.0, 2.0, 3.0], PAIRS, [1.0, 1.0, 1.0, 3.0]
    expected = [ALL, none, pairs, none, within, none, pairs, none, ALL]
    assert values_of_ranks(4, levels, 9, hosts="3+1") == expected


def test_weights_hold_within_the_group_of_the_round() -> None:
    """Values r, weights 1 and 3 in each pair: 3/4 and 2 + 3/4."""

    def work(comm: Communicator) -> float:
        averager = HierarchicalModelAverager({2: 2, 4: 4}, comm=comm)
        arena = Arena({"w": np.zeros(1)}, comm)
        for _ in range(2):
            averager.average_parameters(arena)
        arena["w"][...] = comm.rank
        averager.record_samples(3 if comm.rank % 2 else 1)
        averager.average_parameters(arena)
        return float(arena["w"][0])

    assert run_threads(4, work) == [0.75, 0.75, 2.75, 2.75]


def test_flush_and_evaluation_concern_all_workers() -> None:
    def work(comm: Communicator) -> list[float]:
        averager = HierarchicalModelAverager({2: 2, 4: 4}, comm=comm)
        arena = Arena({"w": np.zeros(1)}, comm)
        arena["w"][...] = comm.rank
        mean = float(averager.mean_of(arena)["w"][0])
        averager.flush(arena)
        return [mean, float(arena["w"][0]), averager.step]

    assert run_threads(4, work, hosts="2+2") == [[1.5, 1.5, 0]] * 4


@pytest.mark.parametrize(
    ("levels", "warmup", "error", "message"),
    [
        (None, 0, ValueError, "must have at least one level, got none"),
        ({}, 0, ValueError, "must have at least one level, got none"),
        ([(2, 2), (4, 4)], 0, TypeError, "must map periods to group sizes"),
        ({0: 4}, 0, ValueError, "every period .* must be at least 1, got 0"),
        ({2: 2, -4: 4}, 0, ValueError, "every period .* must be at least 1, got -4"),
        ({2: 2, 0: 4}, 0, ValueError, "every period .* must be at least 1, got 0"),
        ({2.5: 4}, 0, TypeError, "every period .* must be an integer, got 2.5"),
        ({True: 4}, 0, TypeError, "every period .* must be an integer, got True"),
        ({2: 2}, 0, ValueError, "largest group must be of all 4 workers, got .* at most 2"),
        ({2: 3, 4: 4}, 0, ValueError, "group size of period 2 must divide the 4 workers, got 3"),
        ({2: 4, 4: 8}, 0, ValueError, "group size of period 4 must divide the 4 workers, got 8"),
        ({2: 0, 4: 4}, 0, ValueError, "group size of period 2 must be at least 1, got 0"),
        ({2: 1.5, 4: 4}, 0, TypeError, "group size of period 2 must be an integer, got 1.5"),
        ({2: "rack", 4: 4}, 0, ValueError, "must be a number, 'host' or 'world', got 'rack'"),
        ({2: "host"}, 0, ValueError, "largest group must be of all 4 workers"),
        ({2: 2, 4: 4}, -1, ValueError, "warmup_steps must be at least 0, got -1"),
        ({2: 3}, -1, ValueError, "warmup_steps must be at least 0, got -1"),
        ({2: 2, 4: 4}, float("nan"), TypeError, "warmup_steps must be an integer, got nan"),
    ],
)
def test_levels_that_do_not_fit_are_refused_on_every_rank(
    levels: Any, warmup: Any, error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> HierarchicalModelAverager:
        return HierarchicalModelAverager(levels, warmup, comm)

    for outcome in outcomes(4, work, hosts="2+2"):
        with pytest.raises(error, match=message):
            raise outcome


def test_different_levels_are_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> HierarchicalModelAverager:
        return HierarchicalModelAverager({2: 1 + comm.rank // 3, 4: 4}, comm=comm)

    for outcome in outcomes(4, work):
        assert isinstance(outcome, MismatchError)
        assert "hierarchy({2: 2, 4: 4}, warmup_steps=0) on rank 3" in str(outcome)


@pytest.mark.parametrize("levels", [{1: 2}, {2: 1, 1: 2}, {1: "world"}])
def test_a_period_of_one_for_all_workers_warns_at_the_callers_line(levels: Any) -> None:
    def work(comm: Communicator) -> None:
        HierarchicalModelAverager(levels, comm=comm)

    with pytest.warns(UserWarning, match="period 1 for all workers") as seen:
        run_threads(2, work)
    assert {warning.filename for warning in seen} == {__file__}


def test_a_period_of_one_for_small_groups_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_threads(2, lambda comm: HierarchicalModelAverager({1: 1, 2: 2}, comm=comm) and None)


def test_levels_can_be_read_smallest_group_first() -> None:
    averager = HierarchicalModelAverager({4: 1, 2: "world"}, 3, solo())
    assert averager.warmup_steps == 3
    assert set(averager.period_group_size_dict.items()) == {(4, 1), (2, "world")}

    def work(comm: Communicator) -> list[tuple[int, Any]]:
        averager = HierarchicalModelAverager({8: 4, 2: 2}, comm=comm)
        return list(averager.period_group_size_dict.items())

    assert run_threads(4, work) == [[(2, 2), (8, 4)]] * 4


def test_a_worker_outside_the_group_counts() -> None:
    averager = HierarchicalModelAverager({2: 2, 4: 4}, comm=NON_MEMBER)
    arena = Arena({"w": np.ones(1)}, solo())
    assert [averager.average_parameters(arena) for _ in range(5)] == [False] * 5
    averager.flush(arena)
    assert averager.step == 5
