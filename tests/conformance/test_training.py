"""Training gives the same on every backend: arenas, averagers, the wrapper, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from backends import Workers
from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
)
from workers import gradient, initial_values, reference

STEPS = 9


def follow(
    comm: Communicator,
    training: PostLocalSGDOptimizer,
    arena: Arena,
    groups_after: Callable[[int], Sequence[Sequence[int]]],
    *,
    weights: Callable[[int], Sequence[float]] | None = None,
) -> None:
    """Trains with each rank's own gradients and compares every rank's values after every step."""
    expected = reference(comm.size, STEPS, groups_after, lr=0.1, momentum=0.9, weights=weights)
    view = arena["w"]
    for step in range(1, STEPS + 1):
        if weights is not None and isinstance(training, LocalSGD):
            training.record_samples(int(weights(step)[comm.rank]))
        arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
        training.step()
        values = comm.gather(arena.flat)
        np.testing.assert_allclose(values, expected[step - 1], rtol=1e-12, atol=1e-14)
        for ranks in groups_after(step):
            assert len({values[rank].tobytes() for rank in ranks}) == 1
    assert np.shares_memory(view, arena.flat)


def begin(comm: Communicator) -> tuple[Arena, optim.SGD]:
    arena = Arena(initial_values(), comm)
    return arena, optim.SGD(arena, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("period", [2, 3])
@pytest.mark.parametrize("warmup", [0, 4])
def test_periodic_training_equals_the_reference(workers: Workers, period: int, warmup: int) -> None:
    def body(comm: Communicator) -> None:
        arena, inner = begin(comm)
        averager = PeriodicModelAverager(period, warmup, comm)
        due = range(warmup + 1, STEPS + 1, period)
        everyone = [range(comm.size)]
        follow(
            comm,
            PostLocalSGDOptimizer(inner, averager),
            arena,
            lambda step: everyone if step in due else [],
        )

    workers.run(body)


def test_hosts_average_often_and_everyone_rarely(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        arena, inner = begin(comm)
        averager = HierarchicalModelAverager({4: "world", 2: "host"}, comm=comm)

        def groups_after(step: int) -> Sequence[Sequence[int]]:
            if step % 2 == 0:
                return []
            return [range(comm.size)] if step % 4 == 1 else comm.topology.hosts

        follow(comm, PostLocalSGDOptimizer(inner, averager), arena, groups_after)

    workers.run(body)


def test_samples_seen_are_the_weights_and_may_be_zero(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        arena, inner = begin(comm)
        everyone = [range(comm.size)]

        def weights(step: int) -> list[float]:
            """Each rank in turn sees nothing."""
            return [float((rank + step) % comm.size) for rank in range(comm.size)]

        def weights_alone(step: int) -> list[float]:
            return [float(step)]

        follow(
            comm,
            LocalSGD(inner, period=1, comm=comm),
            arena,
            lambda _: everyone,
            weights=weights if comm.size > 1 else weights_alone,
        )

    workers.run(body)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_identical_replicas_train_as_one_worker_to_the_bit(workers: Workers, dtype: Any) -> None:
    def train(comm: Communicator, period: int) -> bytes:
        values = {name: array.astype(dtype) for name, array in initial_values().items()}
        arena = Arena(values, comm)
        training = LocalSGD(optim.AdamW(arena, lr=0.1), period, comm=comm)
        for step in range(1, STEPS + 1):
            arena.grad.flat[...] = gradient(0, step, arena.flat)
            training.step()
        return arena.flat.tobytes()

    def body(comm: Communicator) -> None:
        assert train(comm, 2) == train(comm, STEPS + 1)

    workers.run(body)


def test_resuming_equals_never_stopping_to_the_bit(workers: Workers) -> None:
    def train(comm: Communicator, training: LocalSGD, arena: Arena, first: int, last: int) -> None:
        for step in range(first, last + 1):
            training.record_samples(1 + (comm.rank + step) % 3)
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()

    def body(comm: Communicator) -> None:
        arena, inner = begin(comm)
        training = LocalSGD(inner, period=3, comm=comm)
        train(comm, training, arena, 1, 4)
        saved, values = training.state_dict(), {name: a.copy() for name, a in arena.items()}
        train(comm, training, arena, 5, STEPS)
        other, inner = begin(comm)
        resumed = LocalSGD(inner, period=3, comm=comm)
        resumed.load_state_dict(saved)
        for name, array in values.items():
            other[name] = array
        train(comm, resumed, other, 5, STEPS)
        assert other.flat.tobytes() == arena.flat.tobytes()

    workers.run(body)


def test_flush_and_evaluation_in_mid_period(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(3)}, comm)
        arena.flat[...] = 2.0 * comm.rank
        averager = ModelAverager(every(4), comm)
        averager.average_parameters(arena)
        np.testing.assert_allclose(averager.mean_of(arena)["x"], comm.size - 1.0, rtol=1e-15)
        assert arena["x"].tolist() == [2.0 * comm.rank] * 3
        averager.flush(arena)
        np.testing.assert_allclose(arena["x"], comm.size - 1.0, rtol=1e-15)
        assert averager.step == 1

    workers.run(body)


def test_start_and_layout_must_agree(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        if comm.size == 1:
            Arena({"x": np.zeros(3)}, comm, start="check")
            return
        last = comm.rank == comm.size - 1
        words = f"rank {comm.size - 1}"
        with pytest.raises(MismatchError, match=f"parameter 'x' with digest .* on {words}"):
            Arena({"x": np.full(3, float(last))}, comm, start="check")
        with pytest.raises(MismatchError, match=rf"parameter 'x' float64\[4\] on {words}"):
            Arena({"x": np.zeros(3 + last)}, comm)
        with pytest.raises(TypeError if last else MismatchError, match=r"int(64)?|rank"):
            Arena({"x": np.zeros(3, int if last else float)}, comm)
        np.testing.assert_array_equal(
            Arena({"x": np.full(3, comm.rank + 5.0)}, comm).flat, [5.0, 5.0, 5.0]
        )

    workers.run(body)


def test_hyperparameters_schedules_and_steps_must_agree(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        if comm.size == 1:
            return
        last = comm.rank == comm.size - 1
        arena, inner = begin(comm)
        with pytest.raises(MismatchError, match=r"group 0: lr=0\.2 on rank"):
            optim.SGD(arena, lr=0.2 if last else 0.1)
        with pytest.raises(MismatchError, match=r"every\(5\) on rank"):
            LocalSGD(inner, 5 if last else 4, comm=comm)
        averager = ModelAverager(every(1), comm)
        averager.step = int(last)
        with pytest.raises(MismatchError, match="round after step 2"):
            averager.average_parameters(arena)
        assert averager.step == int(last)
        averager.step = 0
        assert averager.average_parameters(arena)

    workers.run(body)
