"""Training goes on under faults: a short part of ``make chaos``."""

from __future__ import annotations

import random

import pytest

import chaos


@pytest.mark.parametrize(
    ("number", "averager"),
    [
        pytest.param(number, averager, marks=[pytest.mark.faults] if number else [])
        for number, averager in enumerate(chaos.AVERAGERS)
    ],
)
def test_training_goes_on_without_workers_that_are_lost(number: int, averager: str) -> None:
    assert chaos.lost(random.Random(number), averager).violations == []


@pytest.mark.faults
@pytest.mark.parametrize("number", range(2))
def test_others_take_the_place_of_workers_that_are_lost(number: int) -> None:
    assert chaos.replaced(random.Random(number)).violations == []


@pytest.mark.long
@pytest.mark.parametrize("averager", ["plain", pytest.param("streaming", marks=pytest.mark.faults)])
def test_training_goes_on_from_damaged_checkpoints(averager: str) -> None:
    assert chaos.damaged(random.Random(0), averager).violations == []


def test_what_is_wrong_is_said() -> None:
    """Reports of a job that has taken too few steps, whose ranks differ and whose loss rises."""
    report = {"steps": chaos.STEPS, "size": 2, "digest": "a", "losses": [2.0, 1.0], "start": 0}
    run = chaos.Run.__new__(chaos.Run)
    run.folder = chaos.Path("nowhere")
    assert run.violations({0: report, 1: report}) == []
    assert run.violations({}) == ["nobody is left: nothing"]
    for change, words in (
        ({"steps": 3}, f"steps must be {chaos.STEPS}, got {{1: 3}}"),
        ({"size": 3}, "size must be 2, got {1: 3}"),
        ({"digest": "b"}, "those that are left are not alike"),
        ({"losses": [1.0, 1.0]}, "the loss of 1 went from 1.0 to 1.0"),
    ):
        assert run.violations({0: report, 1: {**report, **change}}) == [words]
