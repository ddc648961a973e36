"""Quorum and grace, on a clock that the test holds."""

from __future__ import annotations

from typing import Any

import pytest

from localsgd.decoupled import Gathering, Quorum


def test_grace_is_a_share_of_what_the_delay_still_hides() -> None:
    """0.5 · max(0, 3 · 2 - (1 + 2)) = 1.5; with a merge of 7 s nothing is hidden any more."""
    quorum = Quorum(2, margin=0.5, longest_s=10.0)
    assert quorum.grace_s(3, 2.0, 1.0, 2.0) == 1.5
    assert quorum.grace_s(3, 2.0, 1.0, 7.0) == 0.0
    assert Quorum(2, margin=0.5, longest_s=1.0).grace_s(3, 2.0, 1.0, 2.0) == 1.0


def test_a_merge_waits_for_the_quorum_and_then_for_the_grace() -> None:
    """The first is ready at 10, the second at 11, so the grace is 0.5 · (2 · 4 - (1 + 1)) = 3."""
    gathering = Gathering(Quorum(2, margin=0.5, longest_s=10.0), 4, delay=2)
    assert not gathering.is_over(0, 5.0, 4.0, 1.0)
    assert not gathering.is_over(1, 10.0, 4.0, 1.0)
    assert not gathering.is_over(2, 11.0, 4.0, 1.0)
    assert (gathering.quorum_s, gathering.grace_s) == (1.0, 3.0)
    assert not gathering.is_over(3, 13.9, 4.0, 1.0)
    assert gathering.is_over(3, 14.0, 4.0, 1.0)


def test_when_all_are_ready_nobody_is_waited_for() -> None:
    gathering = Gathering(Quorum(2, margin=0.5), 3, delay=2)
    assert not gathering.is_over(2, 0.0, 1.0, 0.0)
    assert gathering.is_over(3, 0.0, 1.0, 0.0)


def test_without_a_margin_the_quorum_is_enough_and_each_merge_begins_anew() -> None:
    gathering = Gathering(Quorum(2), 3, delay=2)
    assert gathering.is_over(2, 0.0, 9.0, 0.0)
    gathering.begin()
    assert not gathering.is_over(1, 100.0, 9.0, 0.0)
    assert gathering.is_over(2, 101.0, 9.0, 0.0)
    assert gathering.quorum_s == 1.0


@pytest.mark.parametrize(("size", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_more_than_half_are_needed_unless_it_is_said(size: int, needed: int) -> None:
    assert Quorum().of(size) == needed


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"needed": 0}, ValueError, "quorum must be at least 1, got 0"),
        ({"needed": 1.5}, TypeError, "quorum must be an integer, got 1.5"),
        ({"margin": 1.0}, ValueError, "margin must be less than 1, got 1.0"),
        ({"margin": -0.1}, ValueError, "margin must be at least 0, got -0.1"),
        ({"longest_s": float("inf")}, ValueError, "longest_s must be finite, got inf"),
    ],
)
def test_numbers_out_of_range_are_named(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Quorum(**given)


def test_a_quorum_above_the_group_is_named() -> None:
    with pytest.raises(ValueError, match="quorum must be at most the 3 workers, got 4"):
        Quorum(4).of(3)
