"""Workers of different speed: shares by hand, weights, and errors."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import Arena, Communicator, ProportionalAverager, run_threads, solo


class Clock:
    """Time that stands still between steps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_slower_worker_takes_fewer_steps() -> None:
    """Worker r takes r + 1 s a step: of 6 steps 6, 3 and 2 fit; all weigh the steps they took.

    Every step of worker r adds r: after the first round of 6 steps each, 6 (0 + 1 + 2) / 3 = 6; the
    second adds (6 · 0 + 3 · 3 + 2 · 4) / 11.
    """

    def work(comm: Communicator) -> list[object]:
        clock = Clock()
        arena = Arena({"x": np.zeros(1)}, comm, grad=False)
        averager = ProportionalAverager(6, comm, clock=clock)
        found: list[object] = []
        taken = 0
        while averager.step < 18:
            clock.now += comm.rank + 1
            arena.flat[...] += comm.rank
            taken += 1
            if averager.average_parameters(arena):
                found.append((averager.step, taken, averager.share))
                taken = 0
                if averager.step == 12:
                    np.testing.assert_allclose(arena.flat, 6 + 17 / 11, rtol=1e-15)
        return found

    shares = [6, 3, 2]
    for found, share in zip(run_threads(3, work), shares, strict=True):
        assert found == [(6, 6, share), (12, share, share), (18, share, share)]


def test_samples_weigh_in_place_of_steps_and_must_on_all() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm, grad=False)
        arena.flat[...] = comm.rank
        averager = ProportionalAverager(1, comm, clock=Clock())
        averager.record_samples(3 if comm.rank else 1)
        averager.average_parameters(arena)
        return arena.flat.tolist()

    assert run_threads(2, work) == [[0.75], [0.75]]


def test_a_failed_round_leaves_all_as_it_was() -> None:
    def work(comm: Communicator) -> tuple[int, object]:
        averager = ProportionalAverager(3, comm, clock=Clock())
        arena = Arena({"x": np.zeros(2 + comm.rank)}, solo(), grad=False)
        for _ in range(2):
            averager.average_parameters(arena)
        before = averager.state_dict()
        with pytest.raises(ValueError, match="elements|sizes|same"):
            averager.average_parameters(arena)
        assert averager.state_dict() == before
        return averager.step, averager.state_dict()["samples"]

    assert run_threads(2, work) == [(2, [None])] * 2


def test_what_cannot_be_is_an_error() -> None:
    averager = ProportionalAverager(3, solo())
    with pytest.raises(ValueError, match="must take equal steps"):
        averager.allow_uneven(True)
    with pytest.raises(ValueError, match="must have 'share'"):
        averager.load_state_dict({"step": 1})
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        ProportionalAverager(0, solo())
