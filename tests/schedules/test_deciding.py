"""Schedules that decide from how training goes: by hand, alike on all ranks, and saved."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from localsgd import AdaComm, Arena, Communicator, ModelAverager, Timed, gossip, run_threads, solo


class Clock:
    """Time that stands still between steps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def rounds_of(clock: Clock, averager: ModelAverager, seconds: list[float]) -> list[int]:
    """After which steps there was a round, with the seconds that each step takes."""
    arena = Arena({"x": np.zeros(2)}, averager.comm, grad=False)
    found = []
    for taken in seconds:
        clock.now += taken
        if averager.average_parameters(arena):
            found.append(averager.step)
    return found


def test_adacomm_follows_the_root_of_the_loss() -> None:
    """F_0 is 4, the period 6; then losses of 1, 1 and 0.04 after rounds of 6, 3 and 1 steps:

    ceil(sqrt(1/4) · 6) = 3; the same again is no shorter, so 3 // 2 = 1; and 1 is the least.
    """
    clock = Clock()
    schedule = AdaComm(6, 0.0, clock=clock)
    averager = ModelAverager(schedule, solo())
    arena = Arena({"x": np.zeros(2)}, averager.comm, grad=False)
    found = []
    for step in range(1, 19):
        schedule.record_loss(4.0 if step <= 6 else 1.0 if step <= 15 else 0.04)
        if averager.average_parameters(arena):
            found.append((step, schedule.period))
    assert found == [(6, 6), (12, 3), (15, 1), (16, 1), (17, 1), (18, 1)]


def test_adacomm_decides_once_an_interval_and_rounds_up() -> None:
    """Losses 9, 9, 4, 4: after 10 s nothing is decided; after 20 s ceil(sqrt(6.5/9) · 4) = 4 is no

    shorter, so 2; the losses since the last decision count, those of the round before, too.
    """
    clock = Clock()
    schedule = AdaComm(4, 8.0, clock=clock)
    averager = ModelAverager(schedule, solo())
    arena = Arena({"x": np.zeros(2)}, averager.comm, grad=False)
    found = []
    for step in range(1, 17):
        clock.now += 1.0
        schedule.record_loss(9.0 if step <= 8 else 4.0)
        if averager.average_parameters(arena):
            found.append((step, schedule.period))
    assert found == [(4, 4), (8, 4), (12, 2), (14, 2), (16, 2)]


def test_adacomm_grows_as_the_learning_rate_falls() -> None:
    """The loss stays, the rate falls to a quarter: sqrt(4) · 3 = 6 steps, then 6 again halved."""
    schedule = AdaComm(3, 0.0, rate=lambda step: 0.4 if step < 6 else 0.1, clock=Clock())
    averager = ModelAverager(schedule, solo())
    arena = Arena({"x": np.zeros(2)}, averager.comm, grad=False)
    found = []
    for step in range(1, 13):
        schedule.record_loss(2.0)
        if averager.average_parameters(arena):
            found.append((step, schedule.period))
    assert found == [(3, 3), (6, 6), (12, 3)]


def test_all_workers_decide_by_the_losses_of_all() -> None:
    """Worker r's losses are (r + 1) · 4, then (r + 1): a quarter on each, in the mean, too."""

    def work(comm: Communicator) -> list[int]:
        schedule = AdaComm(4, 0.0, clock=Clock())
        averager = ModelAverager(schedule, comm)
        arena = Arena({"x": np.zeros(2)}, comm, grad=False)
        for step in range(1, 9):
            schedule.record_loss((comm.rank + 1) * (4.0 if step <= 4 else 1.0))
            averager.average_parameters(arena)
        return [schedule.period, schedule.last_round]

    for size in (1, 2, 3, 4):
        assert run_threads(size, work) == [[2, 8]] * size


def test_a_worker_without_a_loss_is_named_on_all() -> None:
    def work(comm: Communicator) -> str:
        schedule = AdaComm(1, clock=Clock())
        averager = ModelAverager(schedule, comm)
        if comm.rank != 1:
            schedule.record_loss(1.0)
        with pytest.raises(ValueError, match="got no loss on rank 1"):
            averager.average_parameters(Arena({"x": np.zeros(2)}, comm, grad=False))
        return "raised"

    assert run_threads(3, work) == ["raised"] * 3


def test_timed_takes_as_many_steps_as_fit() -> None:
    """Steps of 0.25 s and 1 s a round: 1 step, 4 steps; of 0.5 s from step 6 on: 2 steps."""
    clock = Clock()
    found = rounds_of(clock, ModelAverager(Timed(1.0, clock=clock), solo()), [0.25] * 5 + [0.5] * 8)
    assert found == [1, 5, 9, 11, 13]


def test_timed_grows_by_a_bound_and_goes_by_the_slowest() -> None:
    clock = Clock()
    averager = ModelAverager(Timed(100.0, clock=clock), solo())
    assert rounds_of(clock, averager, [0.001] * 80) == [1, 9, 73]

    def work(comm: Communicator) -> list[int]:
        mine = Clock()
        return rounds_of(mine, ModelAverager(Timed(6.0, clock=mine), comm), [1.0 + comm.rank] * 9)

    # The slowest of three takes 3 s a step: 2 steps a round.
    assert run_threads(3, work) == [[1, 3, 5, 7, 9]] * 3


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_what_was_decided_is_saved(stop: int) -> None:
    def train(averager: ModelAverager, schedule: AdaComm, steps: range) -> list[int]:
        arena = Arena({"x": np.zeros(2)}, averager.comm, grad=False)
        found = []
        for step in steps:
            schedule.record_loss(16.0 / step)
            if averager.average_parameters(arena):
                found.append(step)
        return found

    whole = AdaComm(4, 0.0, clock=Clock())
    expected = train(ModelAverager(whole, solo()), whole, range(1, 20))
    first, later = AdaComm(4, 0.0, clock=Clock()), AdaComm(4, 0.0, clock=Clock())
    averager = ModelAverager(first, solo())
    found = train(averager, first, range(1, stop + 1))
    resumed = ModelAverager(later, solo())
    resumed.load_state_dict(averager.state_dict())
    assert found + train(resumed, later, range(stop + 1, 20)) == expected


def test_what_another_schedule_has_decided_is_not_taken_over() -> None:
    saved = ModelAverager(Timed(1.0), solo()).state_dict()
    averager = ModelAverager(Timed(2.0), solo())
    with pytest.warns(UserWarning, match="goes on with Timed"):
        averager.load_state_dict(saved)
    again = ModelAverager(Timed(1.0), solo())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(saved)
    for bad in ({}, {"period": 0, "last_round": 0}, {"period": 1, "last_round": -1}):
        with pytest.raises(ValueError, match=r"period|decided|last_round"):
            again.load_state_dict({**saved, "decided": bad})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaComm(0), "period must be at least 1, got 0"),
        (lambda: AdaComm(4, -1.0), "interval_s must be at least 0, got -1.0"),
        (lambda: AdaComm(4).record_loss(float("nan")), "loss must be finite, got nan"),
        (lambda: Timed(0.0), "seconds must be above 0, got 0.0"),
        (lambda: Timed(1.0, first_period=0), "first_period must be at least 1, got 0"),
        (lambda: Timed(1.0, growth=1), "growth must be at least 2, got 1"),
    ],
)
def test_a_number_out_of_its_range_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_gossip_refuses_what_needs_reports_of_all() -> None:
    with pytest.raises(TypeError, match="schedule of fixed steps"):
        gossip.GossipAverager(Timed(1.0), gossip.ring(), solo())
