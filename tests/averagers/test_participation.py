"""Rounds to which a sample of the workers gives."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    ModelAverager,
    Participation,
    every,
    outer,
    run_threads,
    solo,
)
from workers import LAYOUTS, assert_named_by_all, outcomes


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_round_is_the_mean_of_those_that_give(size: int, hosts: str) -> None:
    """Worker r moves by r + 1 a step and has seen r + 1 samples; all take the result."""
    chosen = Participation(0.5, seed=3)

    def work(comm: Communicator) -> list[list[float]]:
        arena = Arena({"x": np.zeros(2)}, comm, grad=False)
        averager = ModelAverager(every(2), comm, participation=chosen)
        found = []
        for step in range(1, 9):
            arena.flat[:] += comm.rank + 1
            averager.record_samples(comm.rank + 1)
            averager.average_parameters(arena)
            assert averager.gives_after(step) == (comm.rank in chosen.members(size, step))
            if step % 2 == 0:
                found.append(arena.flat.tolist())
        return found

    expected, at = [], 0.0
    for step in (2, 4, 6, 8):
        giving = np.array(chosen.members(size, step)) + 1.0
        at += 2 * np.square(giving).sum() / giving.sum()
        expected.append([at, at])
    for found in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_those_that_do_not_give_may_hold_anything() -> None:
    """Not even a NaN of theirs is read; and without samples those that give weigh alike."""
    chosen = Participation(2, seed=1)

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(2)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, participation=chosen)
        arena.flat[:] = comm.rank if averager.gives_after(1) else np.nan
        averager.average_parameters(arena)
        return arena.flat.tolist()

    mean = sum(chosen.members(4, 1)) / 2
    assert run_threads(4, work, hosts="2+2") == [[mean, mean]] * 4


def test_every_sample_is_equally_likely() -> None:
    """6 pairs of 4 workers, 3,000 draws: each share within 5 sqrt(p (1 - p) / n) = 0.034 of 1/6."""
    counts = dict.fromkeys(combinations(range(4), 2), 0)
    for step in range(3000):
        counts[tuple(Participation(2).members(4, step))] += 1
    assert all(abs(count / 3000 - 1 / 6) < 0.034 for count in counts.values())


def test_all_give_to_flushes_means_and_steps_together() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm, grad=False)
        averager = ModelAverager(
            every(4, synchronous_steps=1), comm, participation=Participation(1)
        )
        arena.flat[:] = comm.rank
        averager.average_parameters(arena)
        found = [float(arena.flat[0])]
        arena.flat[:] = 3 * comm.rank
        found.append(float(averager.mean_of(arena)["x"][0]))
        averager.flush(arena)
        return [*found, float(arena.flat[0])]

    assert run_threads(3, work) == [[1.0, 3.0, 3.0]] * 3


def test_it_goes_with_outer_steps_as_in_federated_optimization() -> None:
    """Half of the way from the anchor to the mean of those that give."""
    chosen = Participation(1, seed=2)

    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(1)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, outer=outer.SGD(0.5), participation=chosen)
        averager.begin(arena)
        arena.flat[:] = comm.rank + 1
        averager.average_parameters(arena)
        return float(arena.flat[0])

    (giving,) = chosen.members(3, 1)
    assert run_threads(3, work, hosts="2+1") == [(giving + 1) / 2] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Participation(0.0), "share must be above 0 and at most 1, or a number, got 0.0"),
        (lambda: Participation(1.5), "share must be above 0 and at most 1, or a number, got 1.5"),
        (lambda: Participation(0), "share must be at least 1, got 0"),
        (lambda: Participation(0.5, seed=-1), "seed must be at least 0, got -1"),
    ],
)
def test_shares_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_wrong_on_one_rank_is_an_error_on_all() -> None:
    def work(comm: Communicator) -> None:
        ModelAverager(every(1), comm, participation=Participation(3 if comm.rank == 1 else 2))

    words = "share must be at most the 2 workers, got 3"
    assert_named_by_all(outcomes(2, work), ValueError, words, "participations")
    with pytest.raises(TypeError, match="participation must be a Participation, got 0.5"):
        ModelAverager(every(1), solo(), participation=0.5)  # type: ignore[arg-type]
