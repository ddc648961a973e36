"""Workers that are started in the place of lost ones, and join with what the others have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    ShardSampler,
    Survival,
    every,
    optim,
    outer,
    run_threads,
)

COUNT, LIMIT_S = 37, 30.0


def noise(rank: int, step: int) -> Any:
    return np.random.default_rng([rank, step]).normal(size=COUNT)


def nesterov() -> outer.OuterOptimizer:
    return outer.SGD(0.7, momentum=0.9, nesterov=True)


def made(comm: Communicator, outside: Any = None) -> tuple[Arena, PostLocalSGDOptimizer]:
    arena = Arena({"x": np.arange(COUNT, dtype=np.float64)}, comm)
    averager = ModelAverager(every(2), comm, outer=outside)
    return arena, PostLocalSGDOptimizer(optim.Adam(arena, lr=0.1), averager)


def trained(
    comm: Communicator,
    size: int,
    steps: int,
    lost: Callable[[int, int], bool],
    outside: Any = None,
    made: Callable[..., tuple[Arena, PostLocalSGDOptimizer]] = made,
) -> dict[str, Any]:
    """Trains until all have taken ``steps`` steps with ``size`` workers there again.

    All do the same, whoever they are, so that replicas are what one worker alone would be.
    """
    me = -1 if comm.joining else comm.rank
    arena, training = made(comm, outside)
    survival = Survival(training)
    begun, last, deadline = training.averager.step, 0, time.monotonic() + LIMIT_S
    while not last or training.averager.step < last:
        step = training.averager.step + 1
        if not last and step % 2 == 1:
            # All find in the same step that they are all here.
            sizes = survival.hold(lambda: comm.collect(comm.size))
            last = step + 3 if step > steps and len(sizes) == size else 0
        if lost(me, step):
            raise KeyError
        arena.grad.flat[...] = noise(0, step)
        training.step()
        assert time.monotonic() < deadline
    return {
        "flat": arena.flat.copy(),
        "optim": training.optim.state_dict(),
        "step": training.averager.step,
        "begun": begun,
        "joined": survival.joined,
        "lost": survival.lost,
        "size": comm.size,
        "rank": comm.rank,
        "hosts": str(comm.topology),
    }


def undisturbed(steps: int, outside: Any) -> tuple[Any, Any]:
    """Parameters and state of a worker alone, to which nothing happens."""

    def body(comm: Communicator) -> tuple[Any, Any]:
        arena, training = made(comm, outside)
        for step in range(1, steps + 1):
            arena.grad.flat[...] = noise(0, step)
            training.step()
        return arena.flat.copy(), training.optim.state_dict()

    return run_threads(1, body)[0]


@pytest.mark.parametrize(
    ("hosts", "gone"),
    [("2", [1]), ("3", [0]), ("4", [1, 2]), ("2+2", [1]), ("3+1", [2])],
)
@pytest.mark.parametrize("outside", [None, nesterov])
def test_who_joins_is_as_the_others_and_nothing_is_lost(
    hosts: str, gone: list[int], outside: Any
) -> None:
    """Parameters, Adam's moments, anchor and momentum are those of an undisturbed copy."""
    size = sum(map(int, hosts.split("+")))
    outside = outside or (lambda: None)

    def body(comm: Communicator) -> Any:
        return trained(comm, size, 12, lambda me, step: me in gone and step == 5, outside())

    found = run_threads(size, body, hosts=hosts, fault_tolerant=True, respawn=True)
    assert len(found) == size
    assert sorted(one["rank"] for one in found) == list(range(size))
    assert [one["joined"] for one in found] == [False] * (size - len(gone)) + [True] * len(gone)
    steps = found[0]["step"]

    flat, state = undisturbed(steps, outside())
    for one in found:
        assert one["step"] == steps and one["lost"] == len(gone) and one["size"] == size
        assert (one["begun"] > 0) == one["joined"]
        np.testing.assert_allclose(one["flat"], flat, rtol=1e-12)
        assert one["flat"].tobytes() == found[0]["flat"].tobytes()
        assert repr(one["optim"]) == repr(state)
