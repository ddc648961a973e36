"""Fragments that leave and arrive: the written-out algorithm, on every backend and layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from backends import Workers
from localsgd import Arena, Communicator, ModelAverager, every, outer
from localsgd.averagers import OverlappedAverager, StreamingAverager
from oracle import every as every_rank

STEPS = 19
NESTEROV = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
# Two fragments; of the second arena the first has nothing.
PLAN = [["a", "c"], ["b", "d"]]


def parameters(comm: Communicator, dtype: Any = np.float64) -> list[Arena]:
    values = {name: np.arange(n, dtype=dtype) for name, n in (("a", 3), ("b", 5), ("c", 2))}
    other = {"d": np.ones(4, np.float32 if dtype == np.float64 else dtype)}
    return [Arena(values, comm, grad=False), Arena(other, comm, grad=False)]


def move(rank: int, step: int, values: np.ndarray) -> np.ndarray:
    """A local step, which depends on where the worker stands."""
    pull = 0.05 * (rank + 1) * (values - np.cos(np.arange(values.size) + rank))
    return (values - pull + 0.02 * np.sin(3.0 * step + rank)).astype(values.dtype)


def step_all(arenas: Sequence[Arena], rank: int, step: int) -> None:
    for arena in arenas:
        arena.flat[...] = move(rank, step, arena.flat)


def written_out(
    size: int, period: int, plan: Sequence[Sequence[str]], delay: int, mixing: float, start: Any
) -> list[list[dict[str, np.ndarray]]]:
    """Algorithm 2 with plain numpy: every worker's parameters after every step.

    The mean of what workers had when fragment p left, and the outer step from its last anchor.
    """
    x = [{name: np.array(values) for name, values in start.items()} for _ in range(size)]
    arrays = {name: np.array(values) for name, values in start.items()}
    buffers = {name: np.zeros_like(values) for name, values in start.items()}
    away: dict[int, dict[str, np.ndarray]] = {}
    found = []

    def arrive(values: dict[str, np.ndarray]) -> None:
        for worker in x:
            for name, new in values.items():
                worker[name] = mixing * worker[name] + (1 - mixing) * new

    for step in range(1, STEPS + 1):
        for rank in range(size):
            x[rank] = {name: move(rank, step, values) for name, values in x[rank].items()}
        for index, names in enumerate(plan):
            offset = index * period // len(plan)
            if delay and index in away and (step - delay - offset) % period == 0:
                arrive(away.pop(index))
            if step >= max(offset, 1) and (step - offset) % period == 0:
                away[index] = {}
                for name in names:
                    delta = arrays[name] - sum(worker[name] for worker in x) / size
                    buffers[name] = 0.9 * buffers[name] + delta
                    arrays[name] = arrays[name] - 0.7 * (delta + 0.9 * buffers[name])
                    away[index][name] = arrays[name]
                if not delay:
                    arrive(away.pop(index))
        found.append([dict(worker) for worker in x])
    return found


@pytest.mark.parametrize(
    ("period", "delay", "mixing"),
    [(6, 0, 0.0), (6, 0, 0.5), (6, 2, 0.0), (6, 5, 0.25), (4, 4, 0.0)],
)
def test_training_is_the_written_out_algorithm_after_every_step(
    workers: Workers, period: int, delay: int, mixing: float
) -> None:
    """With delay 5 and period 6 both fragments are on their way at once.

    Tolerances are of rounding: the mean is computed in another order here.
    """

    def body(comm: Communicator) -> None:
        arenas = parameters(comm, np.float64)[:1]
        start = {name: values.copy() for name, values in arenas[0].items()}
        plan = [["a", "c"], ["b"]]
        expected = written_out(comm.size, period, plan, delay, mixing, start)
        averager = StreamingAverager(
            period, plan, comm, outer=outer.SGD(**NESTEROV), delay=delay, mixing=mixing
        )
        averager.begin(arenas)
        for step in range(1, STEPS + 1):
            # By name, as the reference does.
            for view in arenas[0].values():
                view[...] = move(comm.rank, step, view)
            averager.average_parameters(arenas)
            for name, view in arenas[0].items():
                np.testing.assert_allclose(
                    view, expected[step - 1][comm.rank][name], rtol=1e-11, atol=1e-12
                )

    workers.run(body)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_fragment_without_delay_is_diloco_to_the_bit(workers: Workers, dtype: Any) -> None:
    def body(comm: Communicator) -> None:
        ours, theirs = (parameters(comm, dtype) for _ in range(2))
        streaming = StreamingAverager(4, 1, comm, outer=outer.SGD(**NESTEROV))
        diloco = ModelAverager(every(4), comm, outer=outer.SGD(**NESTEROV))
        streaming.begin(ours)
        diloco.begin(theirs)
        for step in range(1, 14):
            for arenas, averager in ((ours, streaming), (theirs, diloco)):
                step_all(arenas, comm.rank, step)
                averager.average_parameters(arenas)
            for one, other in zip(ours, theirs, strict=True):
                assert one.flat.tobytes() == other.flat.tobytes()

    workers.run(body)


def test_what_arrives_is_equal_everywhere_and_flush_makes_all_equal(workers: Workers) -> None:
    """Without mixing a fragment has the same bits on every worker when it has just arrived."""

    def body(comm: Communicator) -> None:
        arenas = parameters(comm)
        averager = StreamingAverager(6, PLAN, comm, outer=outer.SGD(**NESTEROV), delay=2)
        averager.begin(arenas)
        for step in range(1, 12):
            step_all(arenas, comm.rank, step)
            averager.average_parameters(arenas)
            for index in averager.streaming.arriving(step):
                for arena in arenas:
                    for name in sorted(set(PLAN[index]) & set(arena.names)):
                        found = every_rank(comm, arena[name].reshape(-1))
                        assert len({values.tobytes() for values in found}) == 1
        assert averager.flush(arenas)
        for arena in arenas:
            assert len({values.tobytes() for values in every_rank(comm, arena.flat)}) == 1
        assert averager.step == 11

    workers.run(body)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["streaming", "overlapped"])
def test_resuming_at_any_step_is_never_having_stopped(workers: Workers, kind: str) -> None:
    """To the bit, with rounds on their way or none; into an averager that has begun or has not."""

    def made(comm: Communicator) -> StreamingAverager:
        if kind == "overlapped":
            return OverlappedAverager(4, 3, comm)
        nesterov = outer.SGD(**NESTEROV)
        return StreamingAverager(6, PLAN, comm, outer=nesterov, delay=4, mixing=0.5)

    def body(comm: Communicator) -> None:
        whole, averager = parameters(comm), made(comm)
        averager.begin(whole)
        saved = []
        for step in range(1, 15):
            step_all(whole, comm.rank, step)
            averager.record_samples(comm.rank + step)
            averager.average_parameters(whole)
            saved.append((averager.state_dict(), [arena.flat.copy() for arena in whole]))
        for stop in range(3, 11):
            arenas, later = parameters(comm), made(comm)
            state, values = saved[stop - 1]
            if stop % 2:
                later.begin(arenas)
                step_all(arenas, comm.rank, 1)
            later.load_state_dict(state)
            for arena, flat in zip(arenas, values, strict=True):
                arena.flat[...] = flat
            if not stop % 2:
                later.begin(arenas)
            for step in range(stop + 1, 15):
                step_all(arenas, comm.rank, step)
                later.record_samples(comm.rank + step)
                later.average_parameters(arenas)
            for one, other in zip(arenas, whole, strict=True):
                assert one.flat.tobytes() == other.flat.tobytes(), stop

    workers.run(body)


def test_an_overlapped_mean_keeps_the_steps_of_the_delay(workers: Workers) -> None:
    """Worker r moves by r + 1 a step. What it has when the mean of step 2 arrives after step 3:

    2 (size + 1) / 2 + (r + 1). After step 4 the next mean leaves.
    """

    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(3)}, comm, grad=False)
        averager = OverlappedAverager(2, 1, comm)
        found = []
        for _ in range(5):
            arena.flat[:] += comm.rank + 1
            averager.average_parameters(arena)
            found.append(arena.flat[0])
        own, mean = comm.rank + 1, (comm.size + 1) / 2
        expected = [own, 2 * own, 2 * mean + own, 2 * mean + 2 * own, 4 * mean + own]
        np.testing.assert_allclose(found, expected, rtol=1e-14)

    workers.run(body)
