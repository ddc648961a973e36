"""Workers with unequal amounts of data end together, equal, on every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest

from backends import Workers
from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
)
from workers import gradient, initial_values, reference

pytestmark = pytest.mark.every_layout

BATCHES = [1, 2, 5, 13, 0, 7]
WARMUP = 3
Groups = Sequence[Sequence[int]]


def batches_of(comm: Communicator) -> list[int]:
    """How many batches each rank has; rank 0 alone has several."""
    return BATCHES[: comm.size] if comm.size > 1 else [5]


def run_out(comm: Communicator, training: PostLocalSGDOptimizer, arena: Arena) -> list[np.ndarray]:
    """Trains on this rank's batches; its parameters after each of its steps and at the end."""
    seen = []
    with training.uneven():
        for step in range(1, batches_of(comm)[comm.rank] + 1):
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()
            seen.append(arena.flat.copy())
    return [*seen, arena.flat.copy()]


def assert_follows(
    comm: Communicator,
    training: PostLocalSGDOptimizer,
    arena: Arena,
    groups_after: Callable[[int], Groups],
    gradient_groups: Callable[[int], Groups] = lambda step: (),
    *,
    start: int = 0,
) -> None:
    """Compares with the written-out reference, whose last step ends with a round of all.

    Without recorded samples a rank weighs 1 if it has stepped since its group's last round.
    """
    batches, everyone = batches_of(comm), [range(comm.size)]
    last = max(batches)

    def with_end(step: int) -> Groups:
        return everyone if step == last else groups_after(step)

    def weights(step: int) -> list[float]:
        of_all = with_end(step) == everyone
        before = start
        for earlier in range(start + 1, step):
            groups = groups_after(earlier)
            if groups == everyone or (groups and not of_all):
                before = earlier
        found = [float(min(count, step) > before) for count in batches]
        return found if any(found) else [1.0] * comm.size

    expected = reference(
        comm.size,
        last,
        with_end,
        lr=0.1,
        momentum=0.9,
        weights=weights,
        gradient_groups=gradient_groups,
        skips=lambda step: [rank for rank, count in enumerate(batches) if step > count],
    )
    seen = run_out(comm, training, arena)
    for step, values in enumerate(seen[:-1], start=1):
        # After its own last step a rank goes on to the end before it is seen again.
        if step < last:
            np.testing.assert_allclose(values, expected[step - 1][comm.rank], rtol=1e-12)
    np.testing.assert_allclose(seen[-1], expected[-1][comm.rank], rtol=1e-12)
    assert len({values.tobytes() for values in comm.gather(seen[-1])}) == 1
    assert training.averager.step == last


def begin(comm: Communicator) -> tuple[Arena, optim.SGD]:
    arena = Arena(initial_values(), comm)
    return arena, optim.SGD(arena, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("period", [1, 3, 4, 10**9])
def test_periodic_training_equals_the_reference_and_ends_equal(
    workers: Workers, period: int
) -> None:
    def body(comm: Communicator) -> None:
        arena, inner = begin(comm)
        everyone = [range(comm.size)]
        assert_follows(
            comm,
            LocalSGD(inner, period, comm=comm),
            arena,
            lambda step: everyone if step % period == 0 else [],
        )

    workers.run(body)


def test_hosts_that_are_done_do_not_keep_the_others(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        arena, inner = begin(comm)
        averager = HierarchicalModelAverager({3: "host", 6: "world"}, comm=comm)

        def groups_after(step: int) -> Groups:
            if step % 3 != 1:
                return []
            return [range(comm.size)] if step % 6 == 1 else comm.topology.hosts

        assert_follows(comm, PostLocalSGDOptimizer(inner, averager), arena, groups_after)

    workers.run(body)


@pytest.mark.parametrize("after", ["none", "host"])
def test_gradients_are_those_of_the_workers_with_data(
    workers: Workers, after: Literal["none", "host"]
) -> None:
    def body(comm: Communicator) -> None:
        arena, inner = begin(comm)
        everyone = [range(comm.size)]

        def gradient_groups(step: int) -> Groups:
            if step <= WARMUP:
                return everyone
            return comm.topology.hosts if after == "host" else []

        stage = GradientStage(after, comm)
        assert_follows(
            comm,
            LocalSGD(inner, 4, synchronous_steps=WARMUP, gradients=stage, comm=comm),
            arena,
            lambda step: everyone if step > WARMUP and (step - WARMUP) % 4 == 0 else [],
            gradient_groups,
            start=WARMUP - 1,
        )

    workers.run(body)


def test_the_average_weighed_by_samples_is_the_pooled_one(workers: Workers) -> None:
    """With rate 1/k in step k a worker holds the mean of its own samples, after any number.

    Σ n_r x_r / Σ n_r of those means is the mean of all samples of all workers.
    """

    def sample(rank: int, step: int) -> np.ndarray:
        return np.cos(np.arange(3.0) + 10 * rank + step)

    def body(comm: Communicator) -> None:
        batches = batches_of(comm)
        arena = Arena({"x": np.zeros(3)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 20, comm=comm)
        with training.uneven():
            for step in range(1, batches[comm.rank] + 1):
                training.param_groups[0]["lr"] = 1.0 / step
                arena.grad["x"] += arena["x"] - sample(comm.rank, step)
                training.record_samples(1)
                training.step()
        everything = [sample(r, k) for r, count in enumerate(batches) for k in range(1, count + 1)]
        np.testing.assert_allclose(arena["x"], np.mean(everything, axis=0), rtol=1e-12)
        assert len({values.tobytes() for values in comm.gather(arena.flat)}) == 1

    workers.run(body)


def test_samples_of_a_level_are_those_since_its_own_last_round(workers: Workers) -> None:
    """A host round moves its workers to x_h = Σ s_i x_i / S_h, with S_h = Σ s_i; the round of all

    right after it has to weigh worker i by s_i still, for then it is the pooled mean:
    Σ_h Σ_i s_i x_h / S = Σ_h S_h x_h / S = Σ_i s_i x_i / S.
    """

    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(2)}, comm)
        averager = HierarchicalModelAverager({2: "host", 4: "world"}, comm=comm)
        averager.step = 2
        arena.flat[...] = comm.rank
        averager.record_samples(comm.rank**2 + 1)
        assert averager.average_parameters(arena)
        averager.average_parameters(arena)
        averager.record_samples(0)
        assert averager.average_parameters(arena)
        samples = np.arange(comm.size) ** 2 + 1.0
        pooled = samples @ np.arange(comm.size) / samples.sum()
        np.testing.assert_allclose(arena["x"], pooled, rtol=1e-13)

    workers.run(body)


def test_a_second_epoch_goes_on_from_the_longest(workers: Workers) -> None:
    """Period 2, steps 1 and then 3 more of the last rank: rounds after steps 2 and 4."""

    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = ModelAverager(every(2), comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        for steps in (1, 3):
            with training.uneven():
                for _ in range(steps if comm.rank == comm.size - 1 else 0):
                    arena.grad["x"] -= 1.0
                    training.step()
        assert averager.step == 4
        assert arena["x"].tolist() == [4.0]

    workers.run(body)
