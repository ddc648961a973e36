"""How long a rank waits: as it was told, or as it has seen."""

from __future__ import annotations

import math

import pytest

from localsgd.comm.waiting.patience import Patience, Usual


def test_a_deadline_that_is_given_is_kept_whatever_is_usual() -> None:
    patience = Patience(40.0)
    assert [patience.fail_after_s(usual) for usual in (0.0, 1000.0)] == [40.0, 40.0]
    assert [patience.say_after_s(usual) for usual in (0.0, 1000.0)] == [20.0, 20.0]


def test_without_one_it_is_ten_minutes_or_five_times_what_is_usual() -> None:
    patience = Patience()
    assert [patience.fail_after_s(usual) for usual in (0.0, 120.0, 200.0)] == [600.0, 600.0, 1000.0]


def test_nobody_is_silent_for_longer_than_five_minutes() -> None:
    patience = Patience()
    said = [patience.say_after_s(usual) for usual in (0.0, 31.0, 299.0, 4000.0)]
    assert said == [30.0, 31.0, 299.0, 300.0]
    assert Patience(4000.0).say_after_s(4000.0) == 300.0


def test_who_wants_to_wait_waits_for_ever_and_says_so_in_time() -> None:
    assert Patience(None, "wait").fail_after_s(0.0) == math.inf
    patience = Patience(40.0, "wait")
    assert (patience.say_after_s(0.0), patience.fail_after_s(0.0)) == (20.0, math.inf)


def test_what_has_lasted_long_once_is_not_usual_and_what_has_twice_is() -> None:
    usual = Usual()
    usual.note(500.0, now=1000.0)
    assert usual.seconds(1000.0) == 0.0
    usual.note(400.0, now=2000.0)
    assert usual.seconds(2000.0) == 400.0
    usual.note(31.0, now=2000.0)
    assert usual.seconds(2000.0) == 400.0


def test_what_lasted_is_worth_half_after_sixteen_times_as_long() -> None:
    usual = Usual()
    for _ in range(2):
        usual.note(400.0, now=0.0)
    assert usual.seconds(16 * 400.0) == 200.0
    assert usual.seconds(32 * 400.0) == 100.0


def test_what_is_shorter_than_the_time_until_a_word_changes_nothing() -> None:
    usual = Usual()
    for now in range(100):
        usual.note(30.0, now=float(now))
    assert usual.seconds(100.0) == 0.0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_deadline_is_above_zero(value: float) -> None:
    with pytest.raises(ValueError, match=f"deadline_s must be above 0 seconds, got {value}"):
        Patience(value)


def test_a_policy_is_one_of_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"on_late must be one of \('fail', 'wait'\), got 'drop'"):
        Patience(None, "drop")  # type: ignore[arg-type]  # that is the point
    monkeypatch.setenv("LOCALSGD_ON_LATE", "never")
    with pytest.raises(ValueError, match=r"LOCALSGD_ON_LATE must be one of .*, got 'never'"):
        Patience.of(None, None)


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALSGD_ON_LATE", "wait")
    monkeypatch.setenv("LOCALSGD_DEADLINE_S", "90")
    assert Patience.of(None, None) == Patience(90.0, "wait")
    assert Patience.of(5.0, "fail") == Patience(5.0, "fail")
    monkeypatch.setenv("LOCALSGD_ON_LATE", "")
    monkeypatch.setenv("LOCALSGD_DEADLINE_S", "")
    assert Patience.of(None, None) == Patience(None, "fail")
