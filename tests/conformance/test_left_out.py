"""Who gives what is not finite is left out of a round, on every backend, size and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import localsgd
from backends import Workers
from localsgd import Arena, Communicator, Guard, LocalSGD, ModelAverager, codecs, optim, outer
from localsgd.comm.contract import Array
from oracle import every, same_bits, some_values, two_level_mean

pytestmark = pytest.mark.filterwarnings("ignore:rank.* left out of a round:UserWarning")

COUNT = 1_001


def trained(comm: Communicator, values: Array, **options: Any) -> Array:
    """The parameters after a step to these values and a round that leaves the last rank out."""
    arena = Arena({"w": np.zeros(COUNT, np.float32)}, comm)
    training = LocalSGD(optim.SGD(arena, lr=1.0, momentum=0.5), 1, **options)
    arena.grad.flat[...] = -values
    training.step()
    # Its momentum is as spoilt as its parameters were.
    gradients = arena.grad.flat
    gradients[...] = 0
    before = arena.flat.copy()
    training.optim.step()
    assert np.isfinite(arena.flat).all()
    return before


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_the_rest_of_a_round_is_the_mean_of_the_others(workers: Workers, compress: bool) -> None:
    """The whole of a compressed round, which is looked at before; else where it is not finite."""

    def body(comm: Communicator) -> None:
        if comm.size == 1:
            return
        values = some_values(comm.rank, COUNT, np.float32)
        if comm.rank == comm.size - 1:
            values[[0, 500, COUNT - 1]] = np.nan, np.inf, -np.inf
        rows = every(comm, values)
        with np.errstate(all="ignore"):
            of_all = two_level_mean(rows, [1.0] * comm.size, comm.topology)
        of_others = two_level_mean(rows, [1.0] * (comm.size - 1) + [0.0], comm.topology)
        guard = Guard("leave out")
        if not compress:
            expected = np.where(np.isfinite(of_all), of_all, of_others)
            assert same_bits(trained(comm, values, guard=guard), expected)
            return
        found = trained(comm, values, guard=guard, compress=codecs.FLOAT16)
        assert len(set(comm.collect(found.tobytes().hex()))) == 1
        # Float16 has 11 bits, of numbers below 512; on one host nothing is lost.
        several = len(comm.topology.hosts) > 1
        np.testing.assert_allclose(found, of_others, rtol=0, atol=0.5 if several else 0)

    workers.run(body)


def test_an_outer_step_is_taken_once_of_every_number(workers: Workers) -> None:
    """From 0 with momentum: a second step of the same number would go further."""

    def body(comm: Communicator) -> None:
        if comm.size == 1:
            return
        arena = Arena({"w": np.zeros(COUNT, np.float32)}, comm, grad=False)
        guard = Guard("leave out", verify=localsgd.every(1))
        averager = ModelAverager(
            localsgd.every(1), comm, outer=outer.SGD(1.0, momentum=0.5), guard=guard
        )
        averager.begin(arena)
        for turn in range(1, 4):
            arena.flat[...] += 1.0
            if comm.rank == 0:
                arena.flat[turn] = np.nan
            averager.average_parameters(arena)
            # Momenta 1, 1.5, 1.75 in the direction of all.
            assert (arena.flat == [1.0, 2.5, 4.25][turn - 1]).all()

    workers.run(body)
