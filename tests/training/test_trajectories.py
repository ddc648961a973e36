"""Training with the wrapper: values after every step, and to the bit where that holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    LocalSGD,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, continued, initial_values, reference, train


def history(
    size: int,
    hosts: str,
    wrap: Callable[[optim.Optimizer, Communicator], Any],
    *,
    momentum: float = 0.0,
    steps: int = 12,
) -> list[np.ndarray]:
    """After every step the parameters of all workers, shape (size, n)."""

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena(initial_values(), comm)
        view = arena["w"]
        training = wrap(optim.SGD(arena, lr=0.1, momentum=momentum), comm)
        seen = train(training, arena, 1, steps)
        assert np.shares_memory(view, arena.flat)
        return seen

    return list(np.stack(run_threads(size, work, hosts=hosts), axis=1))


def assert_follows(
    seen: list[np.ndarray], expected: Sequence[np.ndarray], rounds: Mapping[int, Any]
) -> None:
    """Values after every step; bits equal within each group after its round; different else."""
    for step, (values, wanted) in enumerate(zip(seen, expected, strict=True), start=1):
        np.testing.assert_allclose(values, wanted, rtol=1e-12, atol=1e-14, err_msg=f"step {step}")
        groups = rounds.get(step, ())
        for ranks in groups:
            assert len({values[rank].tobytes() for rank in ranks}) == 1
        if not groups and len(values) > 1:
            assert len({row.tobytes() for row in values}) == len(values)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("period", "warmup"), [(3, 0), (4, 0), (3, 4), (4, 4), (5, 2)])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_periodic_training_equals_the_written_out_reference_after_every_step(
    size: int, hosts: str, period: int, warmup: int, momentum: float
) -> None:
    rounds = {step: [range(size)] for step in range(warmup + 1, 13, period)}
    expected = reference(size, 12, lambda step: rounds.get(step, []), lr=0.1, momentum=momentum)
    seen = history(
        size,
        hosts,
        lambda inner, comm: PostLocalSGDOptimizer(
            inner, PeriodicModelAverager(period, warmup, comm)
        ),
        momentum=momentum,
    )
    assert_follows(seen, expected, rounds)


@pytest.mark.parametrize("synchronous", [0, 3])
@pytest.mark.parametrize("period", [1, 4])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_local_sgd_equals_the_written_out_reference_after_every_step(
    size: int, hosts: str, period: int, synchronous: int
) -> None:
    steps = [*range(1, synchronous + 1), *range(synchronous + period, 13, period)]
    rounds = {step: [range(size)] for step in steps}
    expected = reference(size, 12, lambda step: rounds.get(step, []), lr=0.1, momentum=0.9)
    seen = history(
        size,
        hosts,
        lambda inner, _: LocalSGD(inner, period, synchronous_steps=synchronous),
        momentum=0.9,
    )
    assert_follows(seen, expected, rounds)


@pytest.mark.parametrize("warmup", [0, 3])
def test_hierarchical_training_equals_the_written_out_reference_after_every_step(
    warmup: int,
) -> None:
    pairs, everyone = [[0, 1], [2, 3]], [range(4)]
    rounds = {
        call + 1: everyone if call % 4 == 0 else pairs
        for call in range(12)
        if call >= warmup and call % 2 == 0
    }
    expected = reference(4, 12, lambda step: rounds.get(step, []), lr=0.1, momentum=0.9)
    for hosts in ("2+2", "3+1", "0,2/1,3"):
        seen = history(
            4,
            hosts,
            lambda inner, comm: PostLocalSGDOptimizer(
                inner, HierarchicalModelAverager({2: 2, 4: 4}, warmup, comm)
            ),
            momentum=0.9,
        )
        assert_follows(seen, expected, rounds)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_weighted_training_equals_the_written_out_reference_after_every_step(
    size: int, hosts: str
) -> None:
    """Rank r sees r+1 samples in a step, so every round weighs rank r by r+1."""
    rounds = {step: [range(size)] for step in (4, 8, 12)}
    expected = reference(
        size,
        12,
        lambda step: rounds.get(step, []),
        lr=0.1,
        weights=lambda _: [rank + 1.0 for rank in range(size)],
    )

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena(initial_values(), comm)
        training, seen = LocalSGD(optim.SGD(arena, lr=0.1), period=4), []
        for step in range(1, 13):
            training.record_samples(comm.rank + 1)
            seen.append(train(training, arena, step, step)[0])
        return np.array(seen)

    seen = np.stack(run_threads(size, work, hosts=hosts), axis=1)
    assert_follows(list(seen), expected, rounds)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_worker_trains_as_without_the_library_to_the_bit(momentum: float) -> None:
    plain, wrapped = Arena(initial_values(), solo()), Arena(initial_values(), solo())
    inner = optim.SGD(plain, lr=0.1, momentum=momentum)
    training = LocalSGD(optim.SGD(wrapped, lr=0.1, momentum=momentum), period=3)
    expected = train(inner, plain, 1, 12)
    assert train(training, wrapped, 1, 12).tobytes() == expected.tobytes()


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW])
@pytest.mark.parametrize(("size", "hosts"), [(3, "2+1"), (6, "3+2+1")])
def test_workers_with_equal_data_train_as_one_to_the_bit(size: int, hosts: str, make: Any) -> None:
    def work(comm: Communicator) -> bytes:
        arena = Arena(initial_values(), comm)
        return train(LocalSGD(make(arena, lr=0.1), period=3), arena, 1, 12, rank=0).tobytes()

    alone = Arena(initial_values(), solo())
    expected = train(make(alone, lr=0.1), alone, 1, 12).tobytes()
    assert run_threads(size, work, hosts=hosts) == [expected] * size


def test_the_mean_is_of_the_stepped_values() -> None:
    """lr 0.5, gradients 1 and 3 from 0: stepped to -1/2 and -3/2, mean -1."""

    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=0.5), period=1)
        arena.grad["x"] += 1.0 + 2.0 * comm.rank
        training.step()
        return float(arena["x"][0])

    assert run_threads(2, work) == [-1.0, -1.0]


def test_momentum_stays_local() -> None:
    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=0.5, momentum=0.9), period=1)
        arena.grad["x"] += 1.0 + comm.rank
        training.step()
        return float(training.state["x"]["momentum_buffer"][0])

    assert run_threads(2, work) == [1.0, 2.0]


@pytest.mark.parametrize("saved_at", [1, 3, 4, 6])
@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW])
def test_resuming_equals_never_stopping_to_the_bit(make: Any, saved_at: int) -> None:
    def build(comm: Communicator) -> tuple[LocalSGD, Arena]:
        arena = Arena(initial_values(), comm)
        options = {"momentum": 0.9} if make is optim.SGD else {}
        return LocalSGD(make(arena, lr=0.1, **options), period=4, synchronous_steps=1), arena

    def work(comm: Communicator) -> bool:
        straight, arena = build(comm)
        whole = train(straight, arena, 1, 10)
        half, arena = build(comm)
        train(half, arena, 1, saved_at)
        resumed, arena = continued(half, arena, build)
        rest = train(resumed, arena, saved_at + 1, 10)
        return rest.tobytes() == whole[saved_at:].tobytes()

    assert run_threads(3, work, hosts="2+1") == [True] * 3
