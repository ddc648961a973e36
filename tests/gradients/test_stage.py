"""The gradient stage: weights, micro-batches, its warm-up, saving, and its errors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    lr,
    optim,
    run_threads,
    solo,
    when,
)
from workers import assert_named_by_all, begin, continued, gradient, initial_values, outcomes

STEPS, WARMUP = 12, 4


def test_gradients_weigh_by_the_samples_of_the_step() -> None:
    """Gradients 1, 2, 3 of 1, 2, 3 samples: 14/6 in step 1; in step 2 all weigh the same: 2."""

    def work(comm: Communicator) -> list[float]:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 9, synchronous_steps=2, gradients=stage)
        seen = []
        for step in range(2):
            if step == 0:
                training.record_samples(comm.rank + 1)
            arena.grad["x"] += comm.rank + 1.0
            training.step()
            seen.append(float(arena["x"][0]))
        return seen

    for seen in run_threads(3, work, hosts="2+1"):
        np.testing.assert_allclose(seen, [-14 / 6, -14 / 6 - 2], rtol=1e-15)


def test_samples_of_the_warmup_weigh_in_no_round() -> None:
    """In the warm-up rank 1 saw 100 samples; after it 1 like rank 0, so the mean is plain."""

    def work(comm: Communicator) -> float:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 1, synchronous_steps=1, gradients=stage)
        training.record_samples(100 if comm.rank else 1)
        training.step()
        training.record_samples(1)
        arena.grad["x"] += 2.0 * comm.rank
        training.step()
        return float(arena["x"][0])

    assert run_threads(2, work) == [-1.0, -1.0]


def test_a_step_that_cannot_be_taken_leaves_the_gradients_as_they_are() -> None:
    """Mended, it takes the mean of 3, which is what 8 / 2 is limited to, and 4 / 2."""

    def work(comm: Communicator) -> list[float]:
        stage = GradientStage("none", comm, max_own_norm=3.0)
        training, arena = begin(comm, 9, synchronous_steps=9, gradients=stage)
        arena.grad["x"] += 8.0 - 4 * comm.rank
        seen = []
        training.param_groups[0]["lr"] = -1.0
        for step in (lambda: training.step(micro_batches=2), training.skip_step):
            with pytest.raises(ValueError, match="lr must be"):
                step()
            seen.append(float(arena.grad["x"][0]))
        training.param_groups[0]["lr"] = 1.0
        training.step(micro_batches=2)
        return [*seen, float(arena["x"][0]), training.averager.step]

    assert run_threads(2, work) == [[8.0, 8.0, -2.5, 1], [4.0, 4.0, -2.5, 1]]


def test_the_mean_of_micro_batches_is_stepped_with() -> None:
    """Ranks add up 1+2+3 and 4+5+6: means 2 and 5, together 3½; alone -2 and -5 more."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1), "n": np.zeros(2)}, comm)
        half = Arena({"h": np.zeros(1, ml_dtypes.bfloat16)}, comm)
        stage = GradientStage("none", comm)
        inner = optim.SGD([arena, half], lr=1.0)
        training = LocalSGD(inner, 9, synchronous_steps=1, gradients=stage)
        seen = []
        for _ in range(2):
            for micro in range(3):
                arena.grad["x"] += 3 * comm.rank + micro + 1.0
                half.grad["h"] += np.full(1, micro + 1).astype(half.dtype)
            training.step(micro_batches=3)
            seen.append(float(arena["x"][0]))
        assert half["h"].astype(float).tolist() == [-4.0]
        return seen

    assert run_threads(2, work) == [[-3.5, -5.5], [-3.5, -8.5]]


def test_micro_batches_need_no_stage() -> None:
    arena = Arena({"x": np.zeros(1)}, solo())
    training = LocalSGD(optim.SGD(arena, lr=1.0), 9)

    def closure() -> float:
        arena.grad["x"] += 8.0
        return 0.25

    assert training.step(closure, micro_batches=4) == 0.25
    assert arena["x"].tolist() == [-2.0]
    with pytest.raises(ValueError, match="micro_batches must be at least 1, got 0"):
        training.step(micro_batches=0)


def test_after_the_warmup_nothing_is_sent_for_gradients() -> None:
    def work(comm: Communicator) -> list[int]:
        arena = Arena(initial_values(), comm)
        stage = GradientStage("none", comm)
        training = LocalSGD(optim.SGD(arena, lr=0.1), 99, synchronous_steps=2, gradients=stage)
        seen = []
        for _ in range(4):
            calls = comm.traffic.calls
            training.step()
            seen.append(comm.traffic.calls - calls)
        return seen

    assert run_threads(2, work) == [[1, 1, 0, 0]] * 2


def test_the_warmup_is_the_schedules_whatever_the_averager() -> None:
    def work(comm: Communicator) -> list[bool]:
        arena = Arena(initial_values(), comm)
        averager = ModelAverager(when(lambda step: False, warmup_steps=2), comm)
        training = PostLocalSGDOptimizer(
            optim.SGD(arena, lr=0.1), averager, gradients=GradientStage("none", comm)
        )
        equal = []
        for step in range(1, 4):
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()
            equal.append(len({values.tobytes() for values in comm.gather(arena.flat)}) == 1)
        return equal

    assert run_threads(2, work) == [[True, True, False]] * 2


@pytest.mark.parametrize("saved_at", [2, 4, 6])
def test_resuming_equals_never_stopping_to_the_bit(saved_at: int) -> None:
    """In the warm-up, at its end, and in mid-period; with a learning rate of the wrapper's."""

    def build(comm: Communicator) -> tuple[LocalSGD, Arena]:
        arena = Arena(initial_values(), comm)
        inner = optim.SGD(arena, lr=0.1, momentum=0.9)
        stage = GradientStage("host", comm, max_norm=1.0)
        training = LocalSGD(
            inner, 3, synchronous_steps=WARMUP, gradients=stage, rate=lr.cosine(STEPS)
        )
        return training, arena

    def train(training: LocalSGD, arena: Arena, steps: range) -> bytes:
        for step in steps:
            training.record_samples(1 + (arena.comm.rank + step) % 3)
            arena.grad.flat[...] = gradient(arena.comm.rank, step, arena.flat)
            training.step()
        return arena.flat.tobytes()

    def work(comm: Communicator) -> bool:
        whole = train(*build(comm), range(1, STEPS))
        half, arena = build(comm)
        train(half, arena, range(1, saved_at + 1))
        resumed, arena = continued(half, arena, build)
        return train(resumed, arena, range(saved_at + 1, STEPS)) == whole

    assert run_threads(3, work, hosts="2+1") == [True] * 3


def test_the_rate_of_the_wrapper_is_set_before_every_step_and_may_be_replaced() -> None:
    """Rates 1, ½, ¼ of gradient 1; then a rate of 10 takes over, also after a load."""
    arena = Arena({"x": np.zeros(1)}, solo())
    training = LocalSGD(optim.SGD(arena, lr=1.0), 9, rate=lr.decay(1, 0.5))
    seen = []
    for step in range(5):
        if step == 3:
            training.load_state_dict(training.state_dict())
            training.rate = lr.constant(10.0)
        arena.grad["x"] += 1.0
        training.step()
        seen.append(float(arena["x"][0]))
    assert seen == [-1.0, -1.5, -1.75, -11.75, -21.75]


def test_workers_at_different_steps_get_an_error_on_every_rank_before_the_step() -> None:
    def work(comm: Communicator) -> list[float]:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 9, synchronous_steps=8, gradients=stage)
        training.averager.step = comm.rank
        arena.grad["x"] += 1.0
        with pytest.raises(MismatchError, match=r"gradients of step 1.*gradients of step 2"):
            training.step()
        return [float(arena["x"][0]), float(arena.grad["x"][0]), training.averager.step]

    assert run_threads(2, work) == [[0.0, 1.0, 0], [0.0, 1.0, 1]]


def test_some_workers_recording_samples_is_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> None:
        stage = GradientStage("none", comm)
        inner = optim.SGD(Arena({"x": np.zeros(1)}, comm), lr=1.0)
        training = LocalSGD(inner, 9, synchronous_steps=8, gradients=stage)
        if comm.rank:
            training.record_samples(4)
        training.step()

    for outcome in outcomes(2, work):
        assert isinstance(outcome, MismatchError)
        assert "gradients of step 1, weighed by samples" in str(outcome)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"after": "world"}, ValueError, "after must be 'host' or 'none', got 'world'"),
        ({"max_norm": 0.0}, ValueError, "max_norm must be above 0, got 0.0"),
        ({"max_own_norm": -1}, ValueError, "max_own_norm must be at least 0, got -1"),
        ({"max_norm": "1"}, TypeError, "max_norm must be a number, got '1'"),
    ],
)
def test_bad_options_are_an_error_on_every_rank(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        GradientStage(comm=comm, **(options if comm.rank == 1 else {}))

    assert_named_by_all(outcomes(2, work), error, message, "gradient stages")


def test_options_must_be_equal_on_all_ranks_and_of_the_averagers_workers() -> None:
    def work(comm: Communicator) -> None:
        with pytest.raises(MismatchError, match=r"max_norm=1\.0 on rank 0; max_norm=2\.0 on rank"):
            GradientStage(comm=comm, max_norm=1.0 + comm.rank)
        inner = optim.SGD(Arena({"x": np.zeros(1)}, comm), lr=1.0)
        averager = ModelAverager(every(2), comm)
        with pytest.raises(ValueError, match="among the averager's workers"):
            PostLocalSGDOptimizer(inner, averager, gradients=GradientStage("none", comm.split(0)))
        with pytest.raises(TypeError, match="gradients must be a GradientStage, got 'host'"):
            PostLocalSGDOptimizer(inner, averager, gradients="host")  # type: ignore[arg-type]

    run_threads(2, work)
    assert repr(GradientStage("host", solo(), max_norm=2)) == "GradientStage('host', max_norm=2)"
