"""Ending unevenly: what every worker weighs, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    run_threads,
    when,
)
from workers import begin, drift

BATCHES = [1, 2, 5, 13]


def test_rounds_weigh_by_samples_in_closed_form() -> None:
    """Worker r moves by r+1 a step and has 1, 2, 5, 13 batches of r+1 samples; period 4.

    A round moves all by Σ n v / Σ n over what was seen since the last: n samples in k steps of
    speed v move a worker by k·v. Steps 1-4: k = 1, 2, 4, 4; 5-8: 0, 0, 1, 4; 9-12: 4 of rank
    3 alone, 13 one more.
    """
    samples, speed = np.arange(1, 5), np.arange(1.0, 5)
    expected = 0.0
    for steps in ([1, 2, 4, 4], [0, 0, 1, 4], [0, 0, 0, 4], [0, 0, 0, 1]):
        weights = np.array(steps) * samples
        expected += float(weights @ (np.array(steps) * speed) / weights.sum())

    def work(comm: Communicator) -> tuple[float, int, int]:
        training, arena = begin(comm, 4)
        with training.uneven():
            for _ in range(BATCHES[comm.rank]):
                training.record_samples(comm.rank + 1)
                drift(training, arena, comm.rank + 1.0)
        return float(arena["x"][0]), training.averager.step, training.averager.rounds

    results = run_threads(4, work, hosts="3+1")
    assert len(set(results)) == 1
    value, step, rounds = results[0]
    assert value == pytest.approx(expected, rel=1e-14)
    assert (step, rounds) == (13, 4)


@pytest.mark.parametrize("schedule", [every(10**9), when(lambda step: step == 2)])
def test_schedules_that_hold_no_more_rounds_end_too(schedule: Any) -> None:
    def work(comm: Communicator) -> tuple[float, int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = ModelAverager(schedule, comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with training.uneven():
            for _ in range(BATCHES[comm.rank]):
                arena.grad["x"] -= 1.0
                training.step()
        return float(arena["x"][0]), averager.step

    results = run_threads(4, work, hosts="2+2")
    # In one round all weigh the same; after one at step 2 (at 7/4) ranks 2 and 3 went on.
    expected = 21 / 4 if "1000" in repr(schedule) else 7 / 4 + (3 + 11) / 2
    assert results == [(expected, 13)] * 4


def test_all_skipping_is_not_all_being_done() -> None:
    """Everybody skips steps 1 to 3, then rank 1 moves by 1 in steps 4 to 6; rounds at 4 and 6.

    In the first one both weigh the same, since rank 0 was there until step 3: ½, then 2 more.
    """

    def work(comm: Communicator) -> tuple[float, int]:
        training, arena = begin(comm, 2, synchronous_steps=2, gradients=GradientStage("none", comm))
        with training.uneven():
            for _ in range(3):
                arena.grad["x"] += np.nan
                training.skip_step()
            for _ in range(3 * comm.rank):
                drift(training, arena, 1.0)
        return float(arena["x"][0]), training.averager.step

    assert run_threads(2, work) == [(2.5, 6)] * 2


@pytest.mark.parametrize("record", [False, True])
def test_a_worker_that_ends_with_the_warmup_weighs_no_more(record: bool) -> None:
    """After two steps of the mean gradient both stand at 2; rank 1 goes on alone, to 6."""

    def work(comm: Communicator) -> float:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 4, synchronous_steps=2, gradients=stage)
        with training.uneven():
            for _ in range(2 + 4 * comm.rank):
                if record:
                    training.record_samples(8)
                drift(training, arena, 1.0)
        return float(arena["x"][0])

    assert run_threads(2, work) == [6.0, 6.0]


def test_workers_without_any_data_take_the_others_result() -> None:
    def work(comm: Communicator) -> float:
        training, arena = begin(comm, 2)
        with training.uneven():
            for _ in range(3 if comm.rank == 1 else 0):
                drift(training, arena, 1.0)
        return float(arena["x"][0])

    assert run_threads(3, work, hosts="2+1") == [3.0] * 3


def test_without_any_data_at_all_nothing_happens() -> None:
    def work(comm: Communicator) -> tuple[float, int]:
        training, arena = begin(comm, 2)
        with training.uneven():
            pass
        return float(arena["x"][0]), training.averager.step

    assert run_threads(3, work) == [(0.0, 0)] * 3


def test_samples_of_zero_at_the_end_leave_all_equal() -> None:
    """Rank 1 moves by 2 without weight, with nobody else to weigh: the plain mean is left."""

    def work(comm: Communicator) -> float:
        training, arena = begin(comm, 2)
        with training.uneven():
            for _ in range(comm.rank):
                training.record_samples(0)
                drift(training, arena, 2.0)
        return float(arena["x"][0])

    assert run_threads(2, work) == [1.0, 1.0]


@pytest.mark.parametrize("how", ["load", "set back"])
def test_what_was_settled_before_weighs_no_more(how: str) -> None:
    """Four steps with rounds after 2 and 4; then rank 1 alone moves by 2 and all follow it."""

    def work(comm: Communicator) -> float:
        training, arena = begin(comm, 2)
        for _ in range(4):
            drift(training, arena, comm.rank - 0.5)
        assert arena["x"].tolist() == [0.0]
        if how == "load":
            saved = training.state_dict()
            training, arena = begin(comm, 2)
            training.load_state_dict(saved)
        else:
            training.averager.step = 0
        with training.uneven():
            for _ in range(comm.rank):
                drift(training, arena, 2.0)
        return float(arena["x"][0])

    assert run_threads(2, work) == [2.0, 2.0]


def test_outside_of_the_context_no_weight_is_an_error_still() -> None:
    def work(comm: Communicator) -> None:
        training, arena = begin(comm, 2)
        with training.uneven():
            drift(training, arena, 1.0 + comm.rank)
        training.record_samples(0)
        with pytest.raises(ValueError, match="weight must be above 0"):
            drift(training, arena, 1.0)

    run_threads(2, work)


class Pairs(ModelAverager):
    """Averages with the neighbour after odd steps, and with the one across after even steps."""

    def __init__(self, comm: Communicator) -> None:
        super().__init__(every(1), comm)
        self.near, self.far = comm.split(comm.rank // 2), comm.split(comm.rank % 2)

    def group_due(self, step: int) -> Communicator | None:
        return self.near if step % 2 else self.far


def test_every_rank_may_have_a_group_of_its_own() -> None:
    """Rank r moves by r+1 a step; 0 and 1 take one, 2 and 3 two.

    Near: 1½ and 3½; far: 0 takes the 6½ of 2, and 1 the 7½ of 3; at last the mean of all is 7.
    """

    def work(comm: Communicator) -> tuple[float, int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), Pairs(comm))
        with training.uneven():
            for _ in range(1 + comm.rank // 2):
                arena.grad["x"] -= comm.rank + 1.0
                training.step()
        return float(arena["x"][0]), training.averager.step

    assert run_threads(4, work, hosts="3+1") == [(7.0, 2)] * 4
