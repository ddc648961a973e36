"""Parts of an optimizer's state on schedules of their own (DES-LOC)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    ModelAverager,
    PostLocalSGDOptimizer,
    Schedule,
    StreamingAverager,
    every,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, outcomes

SLOW = {"exp_avg": every(6), "exp_avg_sq": every(12)}


def gradient(rank: int, step: int, at: np.ndarray) -> np.ndarray:
    found: np.ndarray = (rank + 1) * (at - np.cos(np.arange(at.size) + rank)) + np.sin(step + rank)
    return found


def train(
    comm: Communicator, state: Any, steps: int, averager: ModelAverager | None = None
) -> tuple[np.ndarray, ...]:
    """Parameters and both moments after so many steps, with a round after every second."""
    arena = Arena({"w": np.zeros(5)}, comm)
    adam = optim.Adam(arena, lr=0.05)
    averager = averager or ModelAverager(every(2), comm)
    training = PostLocalSGDOptimizer(adam, averager, state=state)
    for step in range(steps):
        arena.grad.flat[...] += gradient(comm.rank, step, arena.flat)
        training.step()
    kept = adam.state["w"]
    return arena.flat.copy(), kept["exp_avg"].copy(), kept["exp_avg_sq"].copy()


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("steps", [7, 13])
def test_each_part_follows_its_own_schedule(size: int, hosts: str, steps: int) -> None:
    """Against every worker's Adam alone, with parameters averaged each 2nd step by hand, first

    moments each 6th and second ones each 12th.
    """
    arenas = [Arena({"w": np.zeros(5)}, solo()) for _ in range(size)]
    adams = [optim.Adam(arena, lr=0.05) for arena in arenas]
    for step in range(steps):
        for rank, (arena, adam) in enumerate(zip(arenas, adams, strict=True)):
            arena.grad.flat[...] += gradient(rank, step, arena.flat)
            adam.step()
        kept = {
            2: [arena.flat for arena in arenas],
            6: [adam.state["w"]["exp_avg"] for adam in adams],
            12: [adam.state["w"]["exp_avg_sq"] for adam in adams],
        }
        for period, arrays in kept.items():
            if (step + 1) % period == 0:
                mean = np.mean(arrays, axis=0)
                for array in arrays:
                    array[...] = mean
    for rank, found in enumerate(run_threads(size, train, SLOW, steps, hosts=hosts)):
        state = adams[rank].state["w"]
        expected = arenas[rank].flat, state["exp_avg"], state["exp_avg_sq"]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11)


def test_all_on_the_schedule_of_rounds_is_the_mean_of_the_state_to_the_bit() -> None:
    each = {"exp_avg": every(2), "exp_avg_sq": every(2)}
    for one, other in zip(
        run_threads(3, train, each, 9), run_threads(3, train, "mean", 9), strict=True
    ):
        assert [a.tobytes() for a in one] == [a.tobytes() for a in other]


def test_streaming_keeps_them_too_and_a_flush_takes_all() -> None:
    def work(comm: Communicator) -> list[str]:
        arena = Arena({"a": np.zeros(2), "b": np.zeros(3)}, comm)
        adam = optim.Adam(arena, lr=0.05)
        averager = StreamingAverager(2, 2, comm)
        training = PostLocalSGDOptimizer(adam, averager, state={"exp_avg": every(4)})
        found = []
        for step in range(5):
            arena.grad.flat[...] += gradient(comm.rank, step, arena.flat)
            training.step()
            moments = [adam.state[name]["exp_avg"].tobytes().hex() for name in "ab"]
            found.append("".join(moments))
        training.flush()
        found.append("".join(adam.state[name]["exp_avg"].tobytes().hex() for name in "ab"))
        return found

    rows = zip(*run_threads(3, work), strict=True)
    assert [len(set(row)) == 1 for row in rows] == [False, False, False, True, False, True]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (
            {"momentum": every(2)},
            ValueError,
            r"state must have keys of .* got 'momentum'",
        ),
        ({"exp_avg": 3}, TypeError, r"state\['exp_avg'\] must be as every\(48\) is"),
    ],
)
def test_what_is_no_part_or_no_schedule_is_an_error_on_all(
    state: dict[str, Schedule], error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        train(comm, state if comm.rank == 1 else SLOW, 1)

    found = outcomes(3, work)
    assert isinstance(found[1], error)
    for entry in found:
        with pytest.raises(Exception, match=message):
            raise entry
