"""Workers that mix with neighbours go on with those that are left, on the graph of their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    PostLocalSGDOptimizer,
    Survival,
    codecs,
    every,
    gossip,
    optim,
    run_threads,
)
from localsgd.arrays import Arena as AnyArena

COUNT, STEPS = 11, 12
LAYOUTS = ["4", "2+2", "3", "2+1", "1+1+1"]
RATE, MOMENTUM, PULL, GAMMA = 0.7, 0.5, 0.7, 0.4


class Lopsided(gossip.Graph):
    """Every worker sends half of itself to the first, which sends a third to the last."""

    def matrix(self, size: int, round: int = 0) -> Any:
        found = np.eye(size) / 2
        found[0] += 0.5
        found[:, 0] = 0
        found[[0, size - 1], 0] = (2 / 3, 1 / 3) if size > 1 else (1, 1)
        return found

    def __repr__(self) -> str:
        return "Lopsided()"


def noise(rank: int, step: int) -> Any:
    return np.random.default_rng([rank, step]).normal(size=COUNT)


def size_of(hosts: str) -> int:
    return sum(map(int, hosts.split("+")))


def trained(
    hosts: str,
    make: Callable[[Communicator], gossip.GossipAverager],
    lost: dict[int, int],
    *,
    flush: bool = True,
) -> dict[int, Any]:
    """What those that are left hold, by the number that they had; rounds are after even steps."""

    def body(comm: Communicator) -> Any:
        me = comm.rank
        arena = Arena({"x": np.arange(COUNT, dtype=np.float64)}, comm)
        averager = make(comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        Survival(training)
        for step in range(1, STEPS + 1):
            if lost.get(me) == step:
                raise KeyError
            arena.grad.flat[...] = noise(me, step)
            training.step()
        if flush:
            training.flush()
        return me, arena["x"].copy()

    return dict(run_threads(size_of(hosts), body, hosts=hosts, fault_tolerant=True))


def written_out(hosts: str, lost: dict[int, int], method: Any) -> dict[int, Any]:
    """What ``method`` makes of every worker's parameters, round after round."""
    left = list(range(size_of(hosts)))
    x = {rank: np.arange(COUNT, dtype=np.float64) for rank in left}
    for step in range(1, STEPS + 1):
        x = {rank: x[rank] - 0.1 * noise(rank, step) for rank in left}
        if step % 2 == 0:
            left = [rank for rank in left if lost.get(rank, STEPS + 1) > step]
            values = method(step // 2 - 1, left, np.array([x[rank] for rank in left]))
            x = dict(zip(left, values, strict=True))
    return {rank: x[rank] for rank in left}


def check(found: dict[int, Any], wanted: dict[int, Any]) -> None:
    """1e-12 for rounding: sums are taken in another order here."""
    assert set(found) == set(wanted)
    for rank, values in found.items():
        np.testing.assert_allclose(values, wanted[rank], rtol=1e-12, atol=1e-12)


def d_psgd(round: int, left: Sequence[int], x: Any) -> Any:
    return gossip.ring().matrix(len(left)) @ x


class Dying(gossip.GossipAverager):
    """D-PSGD, in whose third round one rank raises when it has mixed and served its neighbours."""

    dies = False

    def _mix(self, index: int, arena: AnyArena, neighbours: Any) -> None:
        super()._mix(index, arena, neighbours)
        if self.dies and self.mixed == 2:
            raise KeyError


@pytest.mark.parametrize("hosts", LAYOUTS)
@pytest.mark.parametrize("in_the_round", [False, True])
def test_a_round_is_held_by_all_that_are_left(hosts: str, in_the_round: bool) -> None:
    """Rank 1 is lost before the third round or behind its part of it, as others may have ended it.

    In a ring of 4 rank 3 is no neighbour of rank 1, and holds its round again all the same.
    """

    def make(comm: Communicator) -> gossip.GossipAverager:
        averager = Dying(every(2), gossip.ring(), comm)
        averager.dies = in_the_round and comm.rank == 1
        return averager

    found = trained(hosts, make, {} if in_the_round else {1: 5}, flush=False)
    check(found, written_out(hosts, {1: 5}, d_psgd))


class PushSum:
    """Numerators and weights of the workers, with what local steps have moved."""

    def __init__(self, size: int) -> None:
        start = np.arange(COUNT, dtype=np.float64)
        self.z = dict.fromkeys(range(size), start)
        self.x, self.w = dict(self.z), dict.fromkeys(range(size), 1.0)

    def __call__(self, round: int, left: Sequence[int], z: Any) -> Any:
        p = Lopsided().matrix(len(left))
        x = p @ self.moved(left, z)
        w = p @ np.array([self.w[rank] for rank in left])
        self.x, self.w = dict(zip(left, x, strict=True)), dict(zip(left, w, strict=True))
        self.z = {rank: self.x[rank] / self.w[rank] for rank in left}
        return [self.z[rank] for rank in left]

    def moved(self, left: Sequence[int], z: Any) -> Any:
        return np.array([self.x[r] + z[i] - self.z[r] for i, r in enumerate(left)])


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_push_sum_ends_at_the_mean_by_the_weights_that_are_left(hosts: str) -> None:
    """Rank 1's numerator and weight are lost with it; a flush is the sum of the rest's by that."""

    def make(comm: Communicator) -> Any:
        return gossip.PushSumAverager(every(2), Lopsided(), comm)

    lost, method = {1: 5}, PushSum(size_of(hosts))
    found = written_out(hosts, lost, method)
    check(trained(hosts, make, lost, flush=False), found)
    left = list(found)
    weights = sum(method.w.values())
    assert abs(weights - len(left)) > 0.1
    mean = method.moved(left, [found[rank] for rank in left]).sum(axis=0) / weights
    check(trained(hosts, make, lost), dict.fromkeys(left, mean))


class Choco:
    """Public copies of the workers, from which neighbours take differences in half precision."""

    def __init__(self, size: int) -> None:
        start = np.arange(COUNT, dtype=np.float64)
        self.public = dict.fromkeys(range(size), start)

    def __call__(self, round: int, left: Sequence[int], x: Any) -> Any:
        public = np.array([self.public[rank] for rank in left])
        x = x + GAMMA * (gossip.ring().matrix(len(left)) @ public - public)
        public = public + (x - public).astype(np.float16)
        self.public = dict(zip(left, public, strict=True))
        return x


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_public_copies_of_choco_go_to_new_neighbours(hosts: str) -> None:
    def make(comm: Communicator) -> Any:
        return gossip.ChocoAverager(every(2), gossip.ring(), codecs.FLOAT16, GAMMA, comm)

    found = trained(hosts, make, {1: 5}, flush=False)
    check(found, written_out(hosts, {1: 5}, Choco(size_of(hosts))))


class NoLoCo:
    """Slow weights and momenta of the workers."""

    def __init__(self, size: int) -> None:
        start = np.arange(COUNT, dtype=np.float64)
        self.slow = dict.fromkeys(range(size), start)
        self.momentum = dict.fromkeys(range(size), np.zeros(COUNT))

    def __call__(self, round: int, left: Sequence[int], x: Any) -> Any:
        w = gossip.random_pairs(0).matrix(len(left), round)
        slow = np.array([self.slow[rank] for rank in left])
        momentum = MOMENTUM * np.array([self.momentum[rank] for rank in left])
        momentum = momentum + RATE * (w @ (x - slow)) + PULL * (w @ slow - slow)
        self.slow = dict(zip(left, slow + momentum, strict=True))
        self.momentum = dict(zip(left, momentum, strict=True))
        return slow + momentum


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_slow_weights_and_momenta_of_noloco_stay(hosts: str) -> None:
    def make(comm: Communicator) -> Any:
        return gossip.NoLoCoAverager(every(2), comm, lr=RATE, momentum=MOMENTUM, pull=PULL)

    found = trained(hosts, make, {1: 5}, flush=False)
    check(found, written_out(hosts, {1: 5}, NoLoCo(size_of(hosts))))


@pytest.mark.parametrize("hosts", ["4", "2+2"])
def test_two_may_be_lost_one_after_the_other(hosts: str) -> None:
    def make(comm: Communicator) -> Any:
        return gossip.PushSumAverager(every(2), Lopsided(), comm)

    lost = {1: 5, 3: 9}
    check(trained(hosts, make, lost, flush=False), written_out(hosts, lost, PushSum(4)))


def test_a_graph_of_another_number_of_workers_is_named() -> None:
    def body(comm: Communicator) -> None:
        me = comm.rank
        arena = Arena({"x": np.zeros(COUNT)}, comm)
        graph = gossip.matrix(np.full((3, 3), 1 / 3))
        averager = gossip.GossipAverager(every(1), graph, comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        Survival(training)
        training.step()
        if me == 1:
            raise KeyError
        words = r"for 2 workers, who were 3, got gossip\.matrix\(.*row for each of 2 workers"
        with pytest.raises(ValueError, match=words):
            training.step()

    run_threads(3, body, fault_tolerant=True)
