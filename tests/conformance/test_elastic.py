"""Elastic averaging on every backend and layout: the written-out algorithm and its centre."""

from __future__ import annotations

import numpy as np
import pytest

from backends import Workers
from localsgd import Arena, Communicator, MismatchError, every
from localsgd.averagers import ElasticAverager

STEPS = 9


def move(rank: int, step: int, values: np.ndarray) -> np.ndarray:
    return values - 0.1 * (rank + 1) * (values - np.cos(np.arange(5) + rank)) + 0.01 * step


@pytest.mark.parametrize("together", [0, 2])
@pytest.mark.parametrize("alpha", [None, 0.3])
def test_training_is_the_written_out_algorithm_after_every_step(
    workers: Workers, alpha: float | None, together: int
) -> None:
    """Tolerances are of rounding: the mean and the steps are computed in another order here."""

    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.ones(5)}, comm, grad=False)
        schedule = every(3, synchronous_steps=together)
        averager = ElasticAverager(schedule, comm, beta=0.8, alpha=alpha)
        averager.begin(arena)
        rate = 0.8 / comm.size if alpha is None else alpha
        x, centre = [np.ones(5)] * comm.size, np.ones(5)
        for step in range(1, STEPS + 1):
            arena.flat[...] = move(comm.rank, step, arena.flat)
            averager.average_parameters(arena)
            x = [move(rank, step, values) for rank, values in enumerate(x)]
            mean = sum(x) / comm.size
            if step <= together:
                x, centre = [mean] * comm.size, mean
            elif (step - together) % 3 == 0:
                x = [values - rate * (values - centre) for values in x]
                centre = centre + 0.8 * (mean - centre)
            np.testing.assert_allclose(arena.flat, x[comm.rank], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(averager.mean_of(arena)["x"], centre, rtol=1e-12, atol=1e-14)
        averager.flush(arena)
        centre = centre + 0.8 * (sum(x) / comm.size - centre)
        np.testing.assert_allclose(arena.flat, centre, rtol=1e-12, atol=1e-14)
        assert len({values.tobytes() for values in comm.gather(arena.flat)}) == 1

    workers.run(body)


def test_rates_out_of_range_are_an_error_on_every_rank(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        last = comm.rank == comm.size - 1
        words = "alpha must be above 0 and at most 1, got 1.5"
        with pytest.raises((ValueError, MismatchError), match=words):
            ElasticAverager(every(2), comm, alpha=1.5 if last else 0.5)

    workers.run(body)
