"""What theory says of how mixing with neighbours brings workers together, through the averagers."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import Arena, Communicator, ModelAverager, every, gossip, run_threads


@pytest.mark.parametrize("size", [4, 8, 9])
def test_a_ring_shrinks_its_slowest_wave_by_the_second_eigenvalue(size: int) -> None:
    """Form 8: (1 + 2 cos(2 pi / n)) / 3 a round, and the mean stays."""
    second = (1 + 2 * np.cos(2 * np.pi / size)) / 3

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm, grad=False)
        averager = gossip.GossipAverager(every(1), gossip.ring(), comm)
        arena.flat[:] = 5 + np.cos(2 * np.pi * comm.rank / size)
        found = []
        for _ in range(6):
            averager.average_parameters(arena)
            found.append(float(arena.flat[0]))
        return found

    waves = np.array(run_threads(size, work)) - 5
    np.testing.assert_allclose(waves.mean(axis=0), 0, atol=1e-14)
    expected = [second**n for n in range(1, 7)]
    np.testing.assert_allclose(waves[0], expected, rtol=1e-12, atol=1e-14)


def mixed(
    comm: Communicator, averager: ModelAverager, start: np.ndarray, rounds: int
) -> np.ndarray:
    """Where all workers are after some rounds, shape (workers, n); they begin at ``start``."""
    arena = Arena({"x": np.zeros(start.shape[1])}, comm, grad=False)
    averager.begin(arena)
    arena.flat[:] = start[comm.rank]
    for _ in range(rounds):
        averager.average_parameters(arena)
    return np.stack(comm.gather(arena.flat))


@pytest.mark.parametrize("power", [1, 2, 3])
def test_one_peer_after_another_gives_all_the_mean_to_the_bit(power: int) -> None:
    """Form 8: after k rounds of 2^k workers, and not before; halves of whole numbers are exact."""
    size = 2**power
    start = np.random.default_rng(0).integers(-64, 65, (size, 5)).astype(float)

    def work(comm: Communicator) -> None:
        for rounds in (power - 1, power):
            averager = gossip.GossipAverager(every(1), gossip.one_peer_exponential(), comm)
            found = mixed(comm, averager, start, rounds)
            assert (found == start.mean(axis=0)).all() == (rounds == power)

    run_threads(size, work)


@pytest.mark.parametrize(("size", "factor"), [(4, 1 / 3), (8, 3 / 7), (16, 0.4667)])
def test_random_pairs_contract_the_spread_as_the_closed_form(size: int, factor: float) -> None:
    """Form 8: the squared spread by (n - 2) / (2 (n - 1)) a round, on average over the pairs.

    Of independent normal numbers any pairs do that on average: a chi-square of n / 2 - 1 over one
    of n - 1 degrees a number; with 20,000 numbers 5 standard errors are below 2 %.
    """
    start = np.random.default_rng(1).normal(size=(size, 20_000))

    def work(comm: Communicator) -> float:
        averager = gossip.GossipAverager(every(1), gossip.random_pairs(0), comm)
        found = mixed(comm, averager, start, 1)
        return float(np.square(found - found.mean(axis=0)).sum())

    exact = (size - 2) / (2 * (size - 1))
    assert exact == pytest.approx(factor, abs=5e-5)
    spread = np.square(start - start.mean(axis=0)).sum()
    assert run_threads(size, work)[0] / spread == pytest.approx(exact, rel=0.02)


def test_push_sum_keeps_both_sums_and_goes_to_the_mean() -> None:
    """Form 8: on a directed graph whose rows do not sum to 1; 1e-12 for rounding.

    Its other eigenvalues are below 0.5, so that 60 rounds leave less than 1e-18 of the spread.
    """
    size = 3
    weights = [[0.5, 0.2, 0.7], [0.5, 0.5, 0.0], [0.0, 0.3, 0.3]]
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(np.array(weights))))
    assert eigenvalues[-2] < 0.5 and not np.allclose(np.sum(weights, axis=1), 1)
    start = np.array([[3.0, -1.0], [0.0, 4.0], [9.0, 0.0]])

    def work(comm: Communicator) -> None:
        averager = gossip.PushSumAverager(every(1), gossip.matrix(weights), comm)
        found = mixed(comm, averager, start, 60)
        w = np.array(comm.collect(averager.weight))
        x = np.stack(comm.gather(averager.state_dict()["numerators"][0]["numerator"]))
        np.testing.assert_allclose(w.sum(), size, rtol=1e-12)
        np.testing.assert_allclose(x.sum(axis=0), start.sum(axis=0), rtol=1e-12)
        assert np.abs(w - 1).max() > 0.1
        np.testing.assert_allclose(found, [start.mean(axis=0)] * size, rtol=1e-12)

    run_threads(size, work)
