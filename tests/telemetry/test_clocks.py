"""Clocks that differ are read alike."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from localsgd import Communicator, Telemetry, run_threads
from localsgd.telemetry import read_runs
from localsgd.telemetry.clocks import aligned
from workers import begin, drift


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_offsets_are_right_to_half_of_the_way_there_and_back(size: int) -> None:
    def work(comm: Communicator) -> tuple[float, float]:
        found = aligned(comm, lambda: time.monotonic() + 1000.0 * comm.rank)
        return found.offset_s, found.error_s

    for rank, (offset_s, error_s) in enumerate(run_threads(size, work)):
        assert abs(offset_s + 1000.0 * rank) <= error_s
        assert error_s < 1.0


def test_the_quickest_answer_is_believed() -> None:
    """Rank 0's clock stands at 100. Rank 1 asks at 10, 20, … and hears after 8, 6, 2, 4, … seconds:
    at 31 it was 100, to a second."""
    waits = (8, 6, 2, 4, 4, 4, 4, 4)
    asking = iter([0.0, *(t for i, wait in enumerate(waits, 1) for t in (10.0 * i, 10 * i + wait))])

    def work(comm: Communicator) -> tuple[float, float]:
        found = aligned(comm, lambda: next(asking) if comm.rank else 100.0)
        return found.offset_s, found.error_s

    assert run_threads(2, work) == [(0.0, 0.0), (69.0, 1.0)]


def test_nobody_ends_a_round_before_all_have_begun_it(tmp_path: Path) -> None:
    """By clocks that differ by hours it would look so."""
    errors: dict[int, float] = {}

    def work(comm: Communicator) -> None:
        shift = (0.0, 7200.0, -3600.0)[comm.rank]
        errors[comm.rank] = aligned(comm, lambda: time.monotonic() + shift).error_s
        training, arena = begin(comm, 2)
        with Telemetry(tmp_path, training, clock=lambda: time.monotonic() + shift):
            for _ in range(20):
                drift(training, arena, 1.0)

    run_threads(3, work, hosts="2+1")
    (run,) = read_runs(tmp_path)
    # Each reading is wrong by half of its own quickest answer at most, which is not that above.
    error_s = 0.1
    assert max(errors.values()) < error_s
    for step in range(2, 21, 2):
        of_round = [line for line in run.rounds if line.step == step]
        assert len(of_round) == 3
        assert min(line.begin_s for line in of_round) >= run.begin_s
        assert max(line.begin_s for line in of_round) <= (
            min(line.end_s for line in of_round) + 2 * error_s
        )
