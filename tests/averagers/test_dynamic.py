"""Rounds when a worker has gone too far: by hand, and what looking costs."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import Arena, Communicator, DynamicAverager, every, run_threads, solo
from workers import LAYOUTS


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_round_is_held_once_a_worker_has_gone_too_far(size: int, hosts: str) -> None:
    """Worker r moves both numbers by r + 1 a step: a squared norm of 2 (r + 1)² t² after t steps.

    With 2 size² · 9.5 as threshold the last worker passes it in step 4, and all go to the mean.
    """

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(2)}, comm, grad=False)
        averager = DynamicAverager(every(1), 2 * size**2 * 9.5, comm)
        averager.begin(arena)
        found = []
        for _ in range(9):
            arena.flat[...] += comm.rank + 1
            if averager.average_parameters(arena):
                found.append((averager.step, arena.flat[1]))
        assert averager.looks == 9 and averager.rounds == 2
        return found

    mean = (size + 1) / 2
    for found in run_threads(size, work, hosts=hosts):
        assert found == [(4, 4 * mean), (8, 8 * mean)]


def test_it_looks_when_the_schedule_says_so_and_samples_stay() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm, grad=False)
        averager = DynamicAverager(every(2), 10.0, comm)
        averager.begin(arena)
        for _ in range(6):
            arena.flat[...] += comm.rank
            averager.record_samples(comm.rank + 1)
            averager.average_parameters(arena)
        assert (averager.looks, averager.rounds) == (3, 1)
        return arena.flat.tolist()

    # Worker 1 has gone 4² = 16 after step 4, with 8 samples to 4; then both go on.
    at = 4 * 8 / 12
    assert run_threads(2, work) == [[at], [at + 2]]


def test_what_is_no_number_is_too_far() -> None:
    arena = Arena({"x": np.zeros(1)}, solo(), grad=False)
    averager = DynamicAverager(every(1), 10.0, solo(), guard=None)
    averager.begin(arena)
    assert not averager.average_parameters(arena)
    arena.flat[...] = np.nan
    assert averager.average_parameters(arena)


def test_a_threshold_below_0_is_an_error_on_all() -> None:
    with pytest.raises(ValueError, match=r"threshold must be at least 0, got -1"):
        DynamicAverager(every(1), -1, solo())
