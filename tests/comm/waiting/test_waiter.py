"""Waiting, with ranks that come at the last moment."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from localsgd.comm import RankFailure
from localsgd.comm.waiting.waiter import Waiter


class Peer:
    """Comes when it is looked at for the first time, and ends at once."""

    def __init__(self, *, comes: bool) -> None:
        self.comes, self.is_here = comes, False

    def check(self, missing: Sequence[int]) -> None:
        self.is_here = self.comes
        raise RankFailure("rank 1 has ended", missing)


def test_a_rank_that_came_just_before_it_ended_has_come() -> None:
    peer = Peer(comes=True)
    waiter = Waiter(60.0, peer.check, lambda ranks: "nowhere")
    waiter.until(lambda: peer.is_here, lambda: [1])
    assert peer.is_here


def test_a_rank_that_has_ended_is_not_waited_for() -> None:
    peer = Peer(comes=False)
    waiter = Waiter(60.0, peer.check, lambda ranks: "nowhere")
    with pytest.raises(RankFailure, match="rank 1 has ended"):
        waiter.until(lambda: peer.is_here, lambda: [1])


def test_time_in_which_a_process_was_stopped_does_not_count() -> None:
    """A job was suspended for 1000 s, of which rank 1 needs a moment to recover."""
    times, looks = iter([0.0, 0.1, 1000.0]), iter([False] * 3000)

    def clock() -> float:
        return next(times, 1000.1)

    waiter = Waiter(60.0, lambda ranks: None, lambda ranks: "nowhere", clock)
    waiter.until(lambda: next(looks, True), lambda: [1])
    assert next(times, None) is None


def test_a_clock_that_leaps_comes_to_the_deadline() -> None:
    times = iter(range(0, 100_000, 1_000))
    waiter = Waiter(60.0, lambda ranks: None, lambda ranks: "nowhere", lambda: float(next(times)))
    with pytest.raises(RankFailure, match=r"waited 60.0 s \(deadline 60 s\) for rank 1: nowhere"):
        waiter.until(lambda: False, lambda: [1])
