"""Weights by samples, rounds out of turn, the mean without a round, and saving."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    MismatchError,
    ModelAverager,
    every,
    run_threads,
    solo,
)
from workers import LAYOUTS, filled, outcomes


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_samples_seen_since_the_last_round_are_the_weights_of_the_next(
    size: int, hosts: str
) -> None:
    """Weights 3(r+1), the sum of two records, and values r: the mean is 2·Σr(r+1) / (n(n+1))."""

    def work(comm: Communicator) -> tuple[list[float], list[float]]:
        averager, arena = ModelAverager(every(1), comm), filled(comm, comm.rank)
        averager.record_samples(comm.rank + 1)
        averager.record_samples(2 * (comm.rank + 1))
        averager.average_parameters(arena)
        weighted = arena.flat.tolist()
        arena.flat[...] = comm.rank
        averager.average_parameters(arena)
        return weighted, arena.flat.tolist()

    mean = sum(rank * (rank + 1) for rank in range(size)) * 2 / (size * (size + 1))
    for weighted, equal in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(weighted, mean, rtol=1e-14)
        np.testing.assert_allclose(equal, (size - 1) / 2, rtol=1e-15)


def test_a_worker_without_samples_takes_the_result_and_gives_nothing() -> None:
    def work(comm: Communicator) -> list[float]:
        averager, arena = ModelAverager(every(1), comm), filled(comm, comm.rank + 1)
        if comm.rank == 0:
            arena.flat[...] = np.nan
        averager.record_samples(comm.rank)
        averager.average_parameters(arena)
        return arena.flat.tolist()

    assert run_threads(3, work) == [[2.0 / 3 + 3.0 * 2 / 3] * 3] * 3


def test_no_samples_anywhere_is_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> None:
        averager = ModelAverager(every(1), comm)
        averager.record_samples(0)
        averager.average_parameters(filled(comm, comm.rank))

    for outcome in outcomes(3, work):
        assert isinstance(outcome, ValueError)


@pytest.mark.parametrize(
    ("count", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)]
)
def test_samples_are_counted_in_whole_numbers(count: Any, error: type[Exception]) -> None:
    averager = ModelAverager(every(1), solo())
    with pytest.raises(error, match="count must be"):
        averager.record_samples(count)
    assert averager.state_dict()["samples"] == [None]


def test_flush_holds_a_round_without_a_step() -> None:
    def work(comm: Communicator) -> tuple[list[float], int, list[bool]]:
        averager, arena = ModelAverager(every(3), comm), filled(comm, comm.rank)
        averager.average_parameters(arena)
        averager.flush(arena)
        flushed = arena.flat.tolist()
        return flushed, averager.step, [averager.average_parameters(arena) for _ in range(2)]

    assert run_threads(3, work) == [([1.0] * 3, 1, [False, True])] * 3


def test_flush_uses_and_resets_the_samples() -> None:
    def work(comm: Communicator) -> tuple[list[float], list[float]]:
        averager, arena = ModelAverager(every(3), comm), filled(comm, comm.rank)
        averager.record_samples(1 + 2 * comm.rank)
        averager.flush(arena)
        weighted = arena.flat.tolist()
        averager.flush(arena)
        return weighted, arena.flat.tolist()

    assert run_threads(2, work) == [([0.75] * 3, [0.75] * 3)] * 2


def test_flush_and_a_round_do_not_mix() -> None:
    def work(comm: Communicator) -> None:
        averager, arena = ModelAverager(every(1), comm), filled(comm, comm.rank)
        averager.flush(arena) if comm.rank else averager.average_parameters(arena)

    for outcome in outcomes(2, work):
        assert isinstance(outcome, MismatchError)
        assert "flush after step 0" in str(outcome)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_the_mean_can_be_evaluated_without_a_round(size: int, hosts: str) -> None:
    def work(comm: Communicator) -> None:
        averager, arena = ModelAverager(every(2), comm), filled(comm, comm.rank)
        other = Arena({"n": np.full(2, 4.0, np.float32)}, comm)
        averager.record_samples(comm.rank + 1)
        before = averager.state_dict()
        mean = averager.mean_of([arena, other])
        assert list(mean) == ["w", "b", "n"]
        assert mean["b"].shape == ()
        np.testing.assert_allclose(mean["w"], 2 * (size - 1) / 3, rtol=1e-14)
        assert mean["n"].tolist() == [4.0, 4.0]
        assert arena.flat.tolist() == [comm.rank] * 3
        assert averager.state_dict() == before
        mean["w"][...] = 99
        assert arena.flat.tolist() == [comm.rank] * 3

    run_threads(size, work, hosts=hosts)


def test_resuming_an_averager_keeps_phase_and_samples() -> None:
    def work(comm: Communicator) -> tuple[list[float], list[float], list[bool]]:
        first, arena = ModelAverager(every(3), comm), filled(comm, comm.rank)
        first.average_parameters(arena)
        first.average_parameters(arena)
        first.record_samples(1 + 2 * comm.rank)
        resumed, copy = ModelAverager(every(3), comm), filled(comm, comm.rank)
        resumed.load_state_dict(first.state_dict())
        first.average_parameters(arena)
        rounds = [resumed.average_parameters(copy) for _ in range(4)]
        return arena.flat.tolist(), copy.flat.tolist(), rounds

    assert run_threads(2, work) == [([0.75] * 3, [0.75] * 3, [True, False, False, True])] * 2


def test_loading_under_another_schedule_warns_and_keeps_its_own() -> None:
    averager = ModelAverager(every(3), solo())
    saved = ModelAverager(every(4), solo()).state_dict()
    with pytest.warns(UserWarning, match=r"saved with schedule every\(4\).*every\(3\)") as caught:
        averager.load_state_dict(saved)
    assert caught[0].filename == __file__
    assert averager.schedule == every(3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": -1}, ValueError, "step must be at least 0"),
        ({"step": "7"}, TypeError, "step must be an integer"),
        ({"samples": [0.5]}, TypeError, "samples must be an integer"),
        ({"samples": [1, 2]}, ValueError, "samples must be a list with one entry"),
        ({"settled": [None]}, TypeError, "settled must be an integer"),
        ({"skipped": 1}, TypeError, "skipped must be True or False"),
        (None, ValueError, "must have 'step'"),
    ],
)
def test_a_failing_load_changes_nothing(change: Any, error: type[Exception], message: str) -> None:
    averager = ModelAverager(every(3), solo())
    averager.record_samples(5)
    before = averager.state_dict()
    with pytest.raises(error, match=message):
        averager.load_state_dict({**before, "step": 9, **change} if change else {})
    assert averager.state_dict() == before
