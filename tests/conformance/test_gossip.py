"""Gossip on every backend and layout: written-out methods, what stays, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backends import Workers
from localsgd import Arena, Communicator, MismatchError, ModelAverager, every, gossip
from localsgd.comm.codecs import FLOAT16
from localsgd.gossip import (
    ChocoAverager,
    GossipAverager,
    NoLoCoAverager,
    PushSumAverager,
    neighbours,
)

STEPS = 9
GRAPHS = {
    "ring": gossip.ring(),
    "torus": gossip.torus(),
    "exponential": gossip.exponential(),
    "one-peer": gossip.one_peer_exponential(),
    "pairs": gossip.random_pairs(1),
}


def move(rank: int, step: int, values: np.ndarray) -> np.ndarray:
    pull = 0.05 * (rank + 1) * (values - np.cos(np.arange(values.size) + rank))
    return values - pull + 0.02 * np.sin(3.0 * step + rank)


def follow(
    comm: Communicator,
    averager: ModelAverager,
    mix: Callable[[np.ndarray, int], np.ndarray],
    steps: int = STEPS,
) -> None:
    """Trains, with a round after every second step, and compares with ``mix(all, round)``.

    Tolerances are of rounding: sums go in another order here.
    """
    arena = Arena({"a": np.ones(4), "b": np.zeros(3)}, comm, grad=False)
    averager.begin(arena)
    x, rounds = np.stack([arena.flat.copy()] * comm.size), 0
    for step in range(1, steps + 1):
        arena.flat[...] = move(comm.rank, step, arena.flat)
        averager.average_parameters(arena)
        x = np.stack([move(rank, step, values) for rank, values in enumerate(x)])
        if step % 2 == 0:
            x = mix(x, rounds)
            rounds += 1
        np.testing.assert_allclose(arena.flat, x[comm.rank], rtol=1e-11, atol=1e-13)
    averager.flush(arena)
    assert len({values.tobytes() for values in comm.gather(arena.flat)}) == 1


@pytest.mark.parametrize("name", GRAPHS)
def test_d_psgd_is_the_written_out_method(workers: Workers, name: str) -> None:
    def body(comm: Communicator) -> None:
        graph = GRAPHS[name]
        averager = GossipAverager(every(2), graph, comm)
        follow(comm, averager, lambda x, round: graph.matrix(comm.size, round) @ x)

    workers.run(body)


def column_stochastic(size: int) -> np.ndarray:
    """Worker j keeps a share and gives the next one the rest, of others more to worker 0."""
    weights = np.zeros((size, size))
    for j in range(size):
        weights[j, j] += 0.5
        weights[(j + 1) % size, j] += 0.3
        weights[0, j] += 0.2
    return weights


def test_push_sum_is_the_written_out_method(workers: Workers) -> None:
    """Numerators and weights of a directed graph whose rows do not sum to 1."""

    def body(comm: Communicator) -> None:
        weights = column_stochastic(comm.size)
        averager = PushSumAverager(every(2), gossip.matrix(weights), comm)
        arena = Arena({"a": np.ones(4), "b": np.zeros(3)}, comm, grad=False)
        averager.begin(arena)
        x, w = np.stack([arena.flat.copy()] * comm.size), np.ones((comm.size, 1))
        z = x / w
        for step in range(1, STEPS + 1):
            before = z
            arena.flat[...] = move(comm.rank, step, arena.flat)
            averager.average_parameters(arena)
            z = np.stack([move(rank, step, values) for rank, values in enumerate(z)])
            x = x + (z - before)
            if step % 2 == 0:
                x, w = weights @ x, weights @ w
                z = x / w
            np.testing.assert_allclose(arena.flat, z[comm.rank], rtol=1e-11, atol=1e-13)
        assert averager.weight == pytest.approx(float(w[comm.rank, 0]), rel=1e-14)
        mean = averager.mean_of(arena)
        np.testing.assert_allclose(mean["a"], x.mean(axis=0)[:4], rtol=1e-11)
        averager.flush(arena)
        np.testing.assert_allclose(arena.flat, x.mean(axis=0), rtol=1e-11)
        assert averager.weight == 1.0

    workers.run(body)


def test_noloco_is_the_written_out_method(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        averager = NoLoCoAverager(every(2), comm, seed=1)
        state: dict[str, Any] = {}

        def mix(theta: np.ndarray, round: int) -> np.ndarray:
            phi = state.get("phi", np.stack([np.array([1.0] * 4 + [0.0] * 3)] * comm.size))
            pairs = gossip.random_pairs(1).matrix(comm.size, round)
            momenta = 0.5 * state.get("m", 0.0) + 0.7 * (pairs @ (theta - phi))
            momenta = momenta + 0.7 * (pairs @ phi - phi)
            state.update(phi=phi + momenta, m=momenta)
            return phi + momenta

        follow(comm, averager, mix)

    workers.run(body)


def test_choco_is_the_written_out_method(workers: Workers) -> None:
    """With half precision for the codec, which rounds each number by itself; steps of its rounding

    turn now and then, which is 2^-11 of a difference that is below 1.
    """

    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.ones(7)}, comm, grad=False)
        averager = ChocoAverager(every(1), gossip.ring(), FLOAT16, 0.4, comm)
        averager.begin(arena)
        weights = gossip.ring().matrix(comm.size)
        x = np.ones((comm.size, 7))
        public = x.copy()
        for step in range(1, 8):
            arena.flat[...] = move(comm.rank, step, arena.flat)
            averager.average_parameters(arena)
            x = np.stack([move(rank, step, values) for rank, values in enumerate(x)])
            x = x + 0.4 * (weights @ public - public)
            public = public + (x - public).astype(np.float16)
            np.testing.assert_allclose(arena.flat, x[comm.rank], rtol=0, atol=1e-3)
            assert (np.abs(arena.flat - x[comm.rank]) < 1e-11).mean() > 0.5

    workers.run(body)


def test_the_graph_of_all_is_the_groups_own_mean(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one host to the bit, several windows long; elsewhere the group's mean has two levels."""

    monkeypatch.setattr(neighbours, "WINDOW", 1000)

    def body(comm: Communicator) -> None:
        count = 4_001
        arenas = [Arena({"x": np.zeros(count, np.float32)}, comm, grad=False) for _ in range(2)]
        everyone = gossip.matrix(np.full((comm.size, comm.size), 1 / comm.size))
        for arena, averager in zip(
            arenas,
            (GossipAverager(every(1), everyone, comm), ModelAverager(every(1), comm)),
            strict=True,
        ):
            arena.flat[...] = np.random.default_rng(comm.rank).normal(size=count)
            averager.average_parameters(arena)
        if len(comm.topology.hosts) == 1:
            assert arenas[0].flat.tobytes() == arenas[1].flat.tobytes()
        else:
            # Two roundings of values below 6.
            np.testing.assert_allclose(arenas[0].flat, arenas[1].flat, rtol=0, atol=2e-6)

    workers.run(body)


def test_bytes_are_those_of_the_neighbours(workers: Workers) -> None:
    """16 bytes of what is compared, and the parameters, for each that takes this worker."""

    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1000, np.float32)}, comm, grad=False)
        averager = GossipAverager(every(1), gossip.exponential(), comm)
        averager.average_parameters(arena)
        weights = gossip.exponential().matrix(comm.size)
        takers = np.count_nonzero(weights[:, comm.rank]) - 1
        peers = np.count_nonzero(weights[:, comm.rank] + weights[comm.rank]) - 1
        assert averager.traffic.sent == takers * 4000 + peers * 16

    workers.run(body)


def test_neighbours_at_other_steps_are_told(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(3)}, comm, grad=False)
        averager = GossipAverager(every(1), gossip.ring(), comm)
        averager.step = comm.rank % 2
        if comm.size % 2 == 0:
            with pytest.raises(MismatchError, match="must stand at the same step, got"):
                averager.average_parameters(arena)
            assert averager.step == comm.rank % 2 and averager.mixed == 0
        averager.step = 4
        averager.average_parameters(arena)
        assert averager.step == 5 and averager.mixed == 1

    workers.run(body)


@pytest.mark.parametrize("name", ["d-psgd", "push-sum", "choco"])
def test_one_that_is_behind_lets_those_who_do_not_know_it_finish(
    workers: Workers, name: str
) -> None:
    """On a ring rank 0 stands elsewhere: its neighbours raise, and all others hold their round."""

    def body(comm: Communicator) -> None:
        makes = {
            "d-psgd": lambda: GossipAverager(every(1), gossip.ring(), comm),
            "push-sum": lambda: PushSumAverager(every(1), gossip.ring(), comm),
            "choco": lambda: ChocoAverager(every(1), gossip.ring(), FLOAT16, 0.5, comm),
        }
        arena = Arena({"x": np.zeros(3)}, comm, grad=False)
        averager = makes[name]()
        averager.begin(arena)
        arena["x"] += comm.rank
        averager.step = 7 if comm.rank == 0 else 0
        near = comm.size > 1 and comm.rank in (0, 1, comm.size - 1)
        if near:
            with pytest.raises(MismatchError, match="must stand at the same step, got"):
                averager.average_parameters(arena)
            assert arena["x"].tolist() == [comm.rank] * 3
        else:
            averager.average_parameters(arena)
        assert averager.mixed == (not near)
        # Nothing of that round is left on its way.
        averager.step, averager.mixed = 8, 1
        averager.average_parameters(arena)
        assert averager.mixed == 2

    workers.run(body)


def test_what_cannot_be_is_an_error_on_every_rank(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(3)}, comm, grad=False)
        bad = np.full((comm.size, comm.size), 0.9 / comm.size)
        with pytest.raises(ValueError, match=r"every row .* got 0\.9|every row .* got 0\.8"):
            GossipAverager(every(1), gossip.matrix(bad), comm)
        averager = GossipAverager(every(1), gossip.ring(), comm)
        averager.record_samples(3)
        with pytest.raises(ValueError, match="must weigh by the graph, got samples"):
            averager.average_parameters(arena)
        if comm.size > 1:
            other = gossip.torus() if comm.rank else gossip.ring()
            with pytest.raises(MismatchError, match="graphs"):
                GossipAverager(every(1), other, comm)

    workers.run(body)
