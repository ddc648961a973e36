"""Waiting, with ranks that come at the last moment, late, or never."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from localsgd.comm import RankFailure
from localsgd.comm.waiting import Late, Patience, Strangers, Waiter


class Peer(Strangers):
    """Comes when it is looked at for the first time, and ends at once."""

    def __init__(self, *, comes: bool) -> None:
        super().__init__(0, "nowhere", self.look)
        self.comes, self.is_here = comes, False

    def look(self, missing: Sequence[int]) -> None:
        self.is_here = self.comes
        raise RankFailure("rank 1 has ended", missing)


class Alone(Strangers):
    """The rank that says of others that they are late; it has computed for so long itself."""

    def __init__(self, computed: Sequence[float] = ()) -> None:
        super().__init__(0, "nowhere", lambda missing: None)
        self.computed, self.shown = iter(computed), list[list[int]]()

    def computed_s(self) -> float:
        return next(self.computed, 0.0)

    def show(self, missing: Sequence[int]) -> None:
        self.shown.append(list(missing))

    def late(self, missing: Sequence[int]) -> Late:
        return Late([5], ["rank 5 computes"], "barrier (collective 3)")


class Time:
    """A clock on which every look takes five seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 5.0
        return self.now

    def after(self, seconds: float) -> Callable[[], bool]:
        """Whether so many have gone by from now on."""
        end = self.now + seconds
        return lambda: self.now >= end


def test_a_rank_that_came_just_before_it_ended_has_come() -> None:
    peer = Peer(comes=True)
    Waiter(Patience(60.0), peer).until(lambda: peer.is_here, lambda: [1])
    assert peer.is_here


def test_a_rank_that_has_ended_is_not_waited_for() -> None:
    peer = Peer(comes=False)
    with pytest.raises(RankFailure, match="rank 1 has ended"):
        Waiter(Patience(60.0), peer).until(lambda: peer.is_here, lambda: [1])


def test_time_in_which_a_process_was_stopped_does_not_count() -> None:
    """A job was suspended for 1000 s, of which rank 1 needs a moment to recover."""
    times, looks = iter([0.0, 0.1, 1000.0]), iter([False] * 3000)

    def clock() -> float:
        return next(times, 1000.1)

    waiter = Waiter(Patience(60.0), Alone(), clock)
    waiter.until(lambda: next(looks, True), lambda: [1])
    assert next(times, None) is None


def test_a_clock_that_leaps_comes_to_the_deadline() -> None:
    times = iter(range(0, 100_000, 1_000))
    strangers = Strangers(0, "nowhere", lambda missing: None)
    waiter = Waiter(Patience(60.0), strangers, lambda: float(next(times)))
    with pytest.raises(RankFailure, match=r"waited 60.0 s \(deadline 60 s\) for rank 1: nowhere"):
        waiter.until(lambda: False, lambda: [1])


def test_who_waits_says_for_whom_at_growing_intervals_and_then_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By default after 30 s, and each time when it has lasted twice as long, until 600 s."""
    with pytest.raises(RankFailure) as caught:
        Waiter(Patience(), Alone(), Time()).until(lambda: False, lambda: [1])
    assert caught.value.ranks == (5,)
    assert str(caught.value) == (
        "waited 600.0 s (deadline 600 s) in barrier (collective 3) for rank 5: rank 5 computes"
    )
    said = capsys.readouterr().err.splitlines()
    assert said[::2] == [
        f"localsgd: rank 0 has waited {seconds} s in barrier (collective 3) for rank 5 "
        "(until 600 s):"
        for seconds in (30, 60, 120, 240, 480)
    ]
    assert said[1::2] == ["  rank 5 computes"] * 5


def test_who_is_to_go_on_waiting_does_and_says_when_it_is_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Time()
    Waiter(Patience(40.0, "wait"), Alone(), clock).until(clock.after(3000), lambda: [1])
    said = capsys.readouterr().err.splitlines()
    waits = [line for line in said if "has waited" in line]
    assert [int(line.split()[5]) for line in waits] == [20 * 2**n for n in range(8)]
    assert "until" not in waits[0]
    assert said[-1] == "localsgd: rank 0 goes on after 2995 s"


def test_who_gives_up_does_not_say_the_same_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """After half of the deadline, but not at its end."""
    with pytest.raises(RankFailure):
        Waiter(Patience(40.0), Alone(), Time()).until(lambda: False, lambda: [1])
    assert capsys.readouterr().err.count("has waited") == 1


def test_a_short_wait_is_not_worth_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Time()
    Waiter(Patience(), Alone(), clock).until(clock.after(25), lambda: [1])
    assert capsys.readouterr().err == ""


def given_up_after(waiter: Waiter) -> float:
    before = waiter.waited_s
    with pytest.raises(RankFailure):
        waiter.until(lambda: False, lambda: [1])
    return waiter.waited_s - before


def test_the_deadline_grows_with_what_was_waited_for_before() -> None:
    """Twice 400 s: the next may take 5 times 800 s; less what they are worth 400 s later."""
    clock = Time()
    waiter = Waiter(Patience(), Alone(), clock)
    assert given_up_after(Waiter(Patience(), Alone(), Time())) == pytest.approx(600, abs=5)
    for _ in range(2):
        waiter.until(clock.after(400), lambda: [1])
    # The waits are noted a look short of or beyond 400 s.
    assert given_up_after(waiter) == pytest.approx(5 * 800 * 0.5 ** (400 / 12800), abs=55)


def test_the_deadline_grows_with_what_the_rank_has_computed_itself() -> None:
    """Who computes for 300 s between collectives grants the others 5 times as much."""
    clock = Time()
    waiter = Waiter(Patience(), Alone([300.0, 300.0]), clock)
    waiter.until(clock.after(15), lambda: [1])
    assert given_up_after(waiter) == pytest.approx(5 * 300, abs=5)


def test_others_see_for_whom_a_rank_waits_and_when_it_does_no_more() -> None:
    clock, alone = Time(), Alone()
    Waiter(Patience(), alone, clock).until(clock.after(25), lambda: [1, 2])
    assert alone.shown[:2] == [[1, 2], [1, 2]]
    assert alone.shown[-1] == []
