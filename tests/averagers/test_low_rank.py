"""PowerSGD: a round by hand, closed form 12, what is kept, and the bytes."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import Arena, Communicator, LowRankAverager, every, run_threads, solo
from localsgd.averagers import ModelAverager
from workers import LAYOUTS


def moves(rank: int) -> np.ndarray:
    """Whole numbers whose mean over workers has rank 2, and whose own have more."""
    random = np.random.default_rng(7)
    common = random.integers(-4, 5, (6, 2)) @ random.integers(-4, 5, (2, 8))
    own = np.random.default_rng(100 + rank // 2).integers(-9, 10, (6, 8))
    return common + own * (1 if rank % 2 else -1)


@pytest.mark.parametrize(("size", "hosts"), [entry for entry in LAYOUTS if entry[0] % 2 == 0])
def test_a_mean_of_that_rank_is_exact(size: int, hosts: str) -> None:
    """Closed form 12: P spans the columns of the mean M, so P Qᵀ = P Pᵀ M is M.

    Workers 2k and 2k + 1 differ from the common matrix of rank 2 by opposite ones of full rank;
    these stay in residuals whose mean is 0, in the second round as well.
    """

    def work(comm: Communicator) -> tuple[list[float], list[float]]:
        arena = Arena({"m": np.zeros((6, 8)), "v": np.zeros(3)}, comm, grad=False)
        averager = LowRankAverager(every(1), 2, comm)
        averager.begin(arena)
        for _ in range(2):
            arena["m"] -= moves(comm.rank)
            arena["v"] -= comm.rank
            averager.average_parameters(arena)
        return arena["m"].reshape(-1).tolist(), arena["v"].tolist()

    common = np.mean([moves(rank) for rank in range(size)], axis=0)
    for matrix, vector in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(matrix, -2 * common.reshape(-1), atol=1e-11)
        assert vector == [-(size - 1.0)] * 3


def test_a_round_by_hand() -> None:
    """Rank 1 of a 3 x 4 matrix with one number of its own on each of two workers.

    The mean M has M[0, 0] = 2 and M[2, 1] = 1. With Q = (1, 1, …) P = (2, 0, 1) / √5, and Mᵀ P =
    (4, 1, 0, 0) / √5: the move is (8, 2; 0, 0; 4, 1) / 5 in the first two columns.
    """

    def work(comm: Communicator) -> list[list[float]]:
        arena = Arena({"m": np.zeros((3, 4))}, comm, grad=False)
        averager = LowRankAverager(every(1), 1, comm)
        averager.begin(arena)
        state = averager.state_dict()
        state["low rank"][0]["right"][...] = 1
        averager.load_state_dict(state)
        arena["m"][0, 0] -= 4.0 * (1 - comm.rank)
        arena["m"][2, 1] -= 2.0 * comm.rank
        averager.average_parameters(arena)
        kept = averager.state_dict()["low rank"][0]
        whole = kept["residual"].reshape(3, 4)
        return [(-arena["m"])[:, :2].reshape(-1).tolist(), whole[:, :2].reshape(-1).tolist()]

    moved = np.array([8, 2, 0, 0, 4, 1]) / 5
    for rank, (found, residual) in enumerate(run_threads(2, work)):
        np.testing.assert_allclose(found, moved, rtol=1e-14)
        wanted = np.array([0, 0, 0, 0, 0, 2.0]) if rank else np.array([4.0, 0, 0, 0, 0, 0])
        np.testing.assert_allclose(residual, wanted - moved, rtol=1e-14)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_nothing_is_lost(size: int, hosts: str) -> None:
    """The way of all and the mean of what is kept are together what workers moved in the mean."""

    def work(comm: Communicator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        arena = Arena({"m": np.zeros((6, 8))}, comm, grad=False)
        averager = LowRankAverager(every(1), 1, comm)
        averager.begin(arena)
        moved = np.zeros(48)
        for step in range(5):
            move = np.random.default_rng([comm.rank, step]).normal(size=48)
            arena.flat[...] -= move
            moved += move
            averager.average_parameters(arena)
        return arena.flat.copy(), averager.state_dict()["low rank"][0]["residual"], moved

    found = run_threads(size, work, hosts=hosts)
    assert len({at.tobytes() for at, _, _ in found}) == 1
    kept, moved = (np.mean([entry[i] for entry in found], axis=0) for i in (1, 2))
    np.testing.assert_allclose(kept - found[0][0], moved, atol=1e-12)


def test_what_is_no_matrix_is_averaged_as_it_is_to_the_bit() -> None:
    def work(comm: Communicator) -> list[bytes]:
        found = []
        for averager in (LowRankAverager(every(1), 2, comm), ModelAverager(every(1), comm)):
            arena = Arena({"v": np.zeros(9), "small": np.zeros((2, 3))}, comm, grad=False)
            averager.begin(arena)
            arena.flat[...] -= np.arange(15) * (comm.rank + 1.0)
            averager.average_parameters(arena)
            found.append(arena.flat.tobytes())
        return found

    for one, other in run_threads(3, work):
        assert one == other


def test_who_gives_nothing_keeps_its_residual() -> None:
    def work(comm: Communicator) -> bool:
        arena = Arena({"m": np.zeros((6, 8))}, comm, grad=False)
        averager = LowRankAverager(every(1), 1, comm)
        averager.begin(arena)
        residuals = []
        for samples in (1, comm.rank):
            arena.flat[...] -= samples * np.random.default_rng(comm.rank).normal(size=48)
            averager.record_samples(samples)
            averager.average_parameters(arena)
            residuals.append(averager.state_dict()["low rank"][0]["residual"].tolist())
        return residuals[0] == residuals[1]

    assert run_threads(2, work) == [True, False]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_matrix_costs_two_thin_ones(size: int) -> None:
    """Of 1,024 x 2,048 numbers at rank 8: both sides as means, and the left from the first worker.

    A mean of n bytes sends 2 n (1 - 1/K); what the first worker has goes out in parts, one to each
    host, and from there to the others: 2 n (1 - 1/K) from it, n (1 - 1/K) from each of them.
    """

    def work(comm: Communicator) -> int:
        arena = Arena({"m": np.zeros((1024, 2048), np.float32)}, comm, grad=False)
        averager = LowRankAverager(every(1), 8, comm)
        averager.begin(arena)
        arena.flat[...] += comm.rank + 1
        averager.average_parameters(arena)
        return averager.traffic.sent

    left, right = 4 * 8 * 1024, 4 * 8 * 2048
    others = (2 * (left + right) + left) * (size - 1) // size
    first = others + left * (size - 1) // size
    found = run_threads(size, work, hosts="+".join(["1"] * size))
    assert found == [first, *[others] * (size - 1)]


def test_a_rank_below_1_is_an_error() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRankAverager(every(1), 0, solo())
