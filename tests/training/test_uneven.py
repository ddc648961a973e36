"""Ending unevenly: who may enter and leave, and what goes wrong in it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    run_threads,
    solo,
)
from workers import begin, drift, outcomes

BATCHES = [1, 2, 5, 13]


def test_all_must_enter_at_one_step_and_do_the_same_in_it() -> None:
    def enter(comm: Communicator) -> None:
        training, _ = begin(comm, 2)
        training.averager.step = comm.rank
        with training.uneven():
            raise AssertionError("not reached")

    for outcome in outcomes(2, enter):
        assert isinstance(outcome, MismatchError)
        assert "may begin to end unevenly must be equal on all ranks" in str(outcome)

    def mix(comm: Communicator) -> None:
        training, arena = begin(comm, 1)
        with training.uneven():
            if comm.rank == 1:
                training.flush()
            elif comm.rank == 2:
                drift(training, arena, 1.0)

    for outcome in outcomes(3, mix):
        assert isinstance(outcome, MismatchError)
        assert "got flush 0 on rank 1; step 1 on rank 2" in str(outcome)


@pytest.mark.parametrize("synchronous", [0, 9])
def test_some_workers_with_data_recording_samples_is_an_error_on_every_rank(
    synchronous: int,
) -> None:
    def work(comm: Communicator) -> None:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 1, synchronous_steps=synchronous, gradients=stage)
        with training.uneven():
            if comm.rank == 2:
                training.record_samples(5)
            if comm.rank:
                drift(training, arena, 1.0)

    what = "gradient" if synchronous else "round"
    for outcome in outcomes(3, work, hosts="2+1"):
        assert isinstance(outcome, MismatchError)
        assert f"step 1 on rank 1; step 1 with {what} weighed by samples on rank 2" in str(outcome)


class SeldomElsewhere(ModelAverager):
    """Rank 0 has a group after every step, the others only after every second one."""

    def group_due(self, step: int) -> Communicator | None:
        return self.comm if self.comm.rank == 0 or step % 2 == 0 else None


@pytest.mark.parametrize(
    ("of_rank_0", "of_others", "message"),
    [
        (3, 3, "must do the same, got step 1 on rank 0; step 2 on rank"),
        (3, 1, "must need all ranks or none, .* got step 1 on rank 0, unknown to rank.* after 1"),
        (0, 2, "must make the same call, .* round after step 1 .* round after step 2"),
    ],
)
@pytest.mark.parametrize(("size", "hosts"), [(2, "1+1"), (3, "2+1"), (4, "4")])
def test_a_step_that_needs_some_ranks_only_is_an_error_on_every_rank(
    size: int, hosts: str, of_rank_0: int, of_others: int, message: str
) -> None:
    def work(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = SeldomElsewhere(every(1), comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with training.uneven():
            for _ in range(of_others if comm.rank else of_rank_0):
                arena.grad["x"] -= 1.0
                training.step()

    for outcome in outcomes(size, work, hosts=hosts):
        assert isinstance(outcome, MismatchError), outcome
        assert re.search(message, str(outcome)), outcome


def test_an_error_in_it_is_raised_and_ends_it() -> None:
    training, arena = begin(solo(), 2)
    with pytest.raises(KeyError, match="data"), training.uneven():
        raise KeyError("data")
    with training.uneven():
        drift(training, arena, 1.0)
    assert arena["x"].tolist() == [1.0]


def test_a_worker_that_fails_does_not_leave_the_others_waiting() -> None:
    def work(comm: Communicator) -> None:
        training, arena = begin(comm, 2)
        with training.uneven():
            for step in range(BATCHES[comm.rank]):
                if step == 3:
                    raise KeyError(f"data of rank {comm.rank}")
                drift(training, arena, 1.0)

    with pytest.raises(KeyError, match="data of rank [23]"):
        run_threads(4, work, hosts="2+2")


def test_it_is_entered_once_and_with_an_averager_of_ours() -> None:
    training, _ = begin(solo(), 2)
    with (
        training.uneven(),
        pytest.raises(ValueError, match="must not be entered twice"),
        training.uneven(),
    ):
        pass

    class Counter:
        step = 0

        def average_parameters(self, params: Any) -> None: ...

    other = PostLocalSGDOptimizer(training.optim, Counter())
    with pytest.raises(TypeError, match=r"uneven\(\) must have an averager"), other.uneven():
        pass


def test_a_worker_outside_the_group_takes_its_own_steps() -> None:
    def work(comm: Communicator) -> tuple[float, int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        group = comm.split(0 if comm.rank < 2 else None)
        averager = ModelAverager(every(2), group)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with training.uneven():
            for _ in range(comm.rank + 1):
                arena.grad["x"] -= 1.0
                training.step()
        return float(arena["x"][0]), averager.step

    assert run_threads(3, work) == [(1.5, 2), (1.5, 2), (3.0, 3)]
