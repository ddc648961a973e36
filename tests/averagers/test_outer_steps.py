"""What an averager makes of an outer optimizer: from where it steps, in which rounds, and saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    outer,
    run_threads,
    solo,
)
from workers import LAYOUTS, outcomes

DILOCO = {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def gradient(rank: int, step: int, values: np.ndarray) -> np.ndarray:
    return (rank + 1) * (values - np.cos(np.arange(values.size) + rank)) + np.sin(step + rank)


def written_out_diloco(
    size: int, steps: int, period: int, together: int, rounds: Callable[[int], bool]
) -> list[np.ndarray]:
    """DiLoCo with plain numpy, all workers in one place, after every step; SGD inside."""
    x = [np.zeros(5) for _ in range(size)]
    anchor, buffer, found = np.zeros(5), np.zeros(5), []
    for step in range(1, steps + 1):
        for rank in range(size):
            x[rank] = x[rank] - 0.05 * gradient(rank, step, x[rank])
        if step <= together:
            anchor = sum(x) / size
            x = [anchor.copy() for _ in range(size)]
        elif rounds(step):
            delta = anchor - sum(x) / size
            buffer = 0.9 * buffer + delta
            anchor = anchor - 0.7 * (delta + 0.9 * buffer)
            x = [anchor.copy() for _ in range(size)]
        found.append(x[0].copy())
    return found


def begun(comm: Communicator, period: int = 4, **options: Any) -> tuple[LocalSGD, Arena]:
    arena = Arena({"x": np.zeros(5)}, comm)
    averager = ModelAverager(every(period, **options), comm, outer=outer.SGD(**DILOCO))
    return PostLocalSGDOptimizer(optim.SGD(arena, lr=0.05), averager), arena


def train(training: Any, arena: Arena, steps: range) -> list[np.ndarray]:
    found = []
    for step in steps:
        arena.grad.flat[:] = gradient(arena.comm.rank, step, arena.flat)
        training.step()
        found.append(arena.flat.copy())
    return found


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("together", [0, 3])
def test_training_is_the_written_out_reference_after_every_step(
    size: int, hosts: str, together: int
) -> None:
    """Synchronous steps at first are plain; the anchor is where they end."""
    expected = written_out_diloco(size, 12, 4, together, lambda step: (step - together) % 4 == 0)

    def work(comm: Communicator) -> Any:
        return train(*begun(comm, synchronous_steps=together), range(1, 13))

    np.testing.assert_allclose(
        run_threads(size, work, hosts=hosts)[0], expected, rtol=1e-12, atol=1e-13
    )


def test_the_anchor_is_where_the_warm_up_ends() -> None:
    """Without a gradient stage workers drift apart in it: a round of the mean ends it."""

    def work(comm: Communicator) -> np.ndarray:
        return train(*begun(comm, warmup_steps=3), range(1, 8))[-1]

    x = [np.zeros(5), np.zeros(5)]
    for step in range(1, 8):
        x = [values - 0.05 * gradient(rank, step, values) for rank, values in enumerate(x)]
        if step == 3:
            anchor = sum(x) / 2
            x = [anchor.copy(), anchor.copy()]
    delta = anchor - sum(x) / 2
    expected = anchor - 0.7 * 1.9 * delta
    for found in run_threads(2, work):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rounds_of_smaller_groups_take_the_mean() -> None:
    """Hosts {0, 1} and {2}: their means after step 3, an outer step of all after step 5."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = HierarchicalModelAverager(
            {2: "host", 4: "world"}, warmup_steps=1, comm=comm, outer=outer.SGD(0.5)
        )
        averager.begin(arena)
        found = []
        for _ in range(5):
            arena.flat[:] += 1.0 + comm.rank
            averager.average_parameters(arena)
            found.append(float(arena.flat[0]))
        return found

    # After step 1 the warm-up ends: all at 2. Then ranks move by 1, 2, 3 a step.
    assert run_threads(3, work, hosts="2+1") == [
        [2.0, 3.0, 5.0, 6.0, 6.0],
        [2.0, 4.0, 5.0, 7.0, 6.0],
        [2.0, 5.0, 8.0, 11.0, 6.0],
    ]


@pytest.mark.parametrize("saved_at", range(1, 9))
def test_resuming_equals_never_stopping_to_the_bit(saved_at: int) -> None:
    def work(comm: Communicator) -> bool:
        whole = train(*begun(comm), range(1, 13))[-1]
        training, arena = begun(comm)
        train(training, arena, range(1, saved_at + 1))
        saved, values = training.state_dict(), arena.flat.copy()
        resumed, other = begun(comm)
        other.flat[:] = values
        resumed.load_state_dict(saved)
        return train(resumed, other, range(saved_at + 1, 13))[-1].tobytes() == whole.tobytes()

    assert run_threads(3, work, hosts="2+1") == [True] * 3


def test_each_rank_keeps_its_shard_alone() -> None:
    def work(comm: Communicator) -> int:
        training, arena = begun(comm)
        train(training, arena, range(1, 2))
        [arrays] = training.state_dict()["averager"]["outer"]["arrays"]
        assert set(arrays) == {"anchor", "momentum_buffer"}
        return arrays["anchor"].size

    assert sorted(run_threads(4, work, hosts="4")) == [1, 1, 1, 2]


def test_a_worker_of_weight_0_gives_nothing_and_goes_on_from_the_anchor() -> None:
    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = ModelAverager(every(1), comm, outer=outer.SGD(0.5))
        averager.begin(arena)
        arena.flat[:] = [np.nan, 4.0, 8.0][comm.rank]
        averager.record_samples(comm.rank)
        averager.average_parameters(arena)
        return float(arena.flat[0])

    # The mean is (4 + 2 · 8) / 3 = 20 / 3, of which half is gone.
    assert run_threads(3, work) == [pytest.approx(10 / 3, rel=1e-15)] * 3


def test_outer_optimizers_must_be_equal_on_all_ranks_and_stay_so() -> None:
    def work(comm: Communicator) -> None:
        ModelAverager(every(1), comm, outer=outer.SGD(0.5 + comm.rank))

    for outcome in outcomes(2, work):
        assert isinstance(outcome, MismatchError)
        assert "outer.SGD(lr=0.5, momentum=0.0) on rank 0" in str(outcome)

    def change(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = ModelAverager(every(1), comm, outer=outer.SGD(0.5))
        averager.begin(arena)
        averager.outer.lr += comm.rank
        with pytest.raises(MismatchError, match="outer lr 0.5"):
            averager.average_parameters(arena)
        assert averager.step == 0

    run_threads(2, change)


def test_rounds_need_a_beginning_with_the_same_parameters() -> None:
    arena, other = Arena({"x": np.zeros(1)}, solo()), Arena({"y": np.zeros(1)}, solo())
    averager = ModelAverager(every(1), solo(), outer=outer.SGD(0.5))
    with pytest.raises(ValueError, match="begin\\(params\\) must be called before"):
        averager.average_parameters(arena)
    averager.begin(arena)
    with pytest.raises(ValueError, match="must be those that training began with"):
        averager.average_parameters(other)
    assert averager.step == 0


def test_a_shard_of_another_layout_is_refused_on_loading() -> None:
    [saved, *_] = run_threads(
        3, lambda comm: (train(*(pair := begun(comm)), range(1, 2)), pair[0].state_dict())[1]
    )
    training, arena = begun(solo())
    train(training, arena, range(1, 2))
    before = training.state_dict()
    with pytest.raises(ValueError, match="it is of another number of ranks, or hosts"):
        training.load_state_dict(saved)
    np.testing.assert_equal(training.state_dict(), before)
