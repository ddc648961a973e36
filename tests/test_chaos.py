"""Training goes on under faults: a short part of ``make chaos``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import chaos
from chaos_run import STEPS, Run
from integration.on_hosts import hosts_up


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
@pytest.mark.parametrize(("number", "averager"), list(enumerate(chaos.AVERAGERS)))
def test_others_take_the_place_of_workers_that_are_lost(number: int, averager: str) -> None:
    assert chaos.replaced(random.Random(number), averager).violations == []


@pytest.mark.faults
@pytest.mark.parametrize("number", range(4))
def test_training_goes_on_without_a_host_that_is_lost(number: int) -> None:
    """A cut link, a dead host, and one of which all processes are killed; drawn by the number."""
    with hosts_up([1]):
        pass
    assert chaos.severed(random.Random(number), "plain").violations == []


@pytest.mark.long
@pytest.mark.parametrize("averager", ["plain", pytest.param("streaming", marks=pytest.mark.faults)])
def test_training_goes_on_from_damaged_checkpoints(averager: str) -> None:
    assert chaos.damaged(random.Random(0), averager).violations == []


def test_what_is_wrong_is_said() -> None:
    """Reports of a job that has taken too few steps, whose ranks differ and whose loss rises."""
    report = {"steps": STEPS, "size": 2, "digest": "a", "losses": [2.0, 1.0], "start": 0}
    run = Run.__new__(Run)
    run.folder = Path("nowhere")
    assert run.violations({0: report, 1: report}) == []
    assert run.violations({}) == ["nobody is left: nothing"]
    for change, words in (
        ({"steps": 3}, f"steps must be {STEPS}, got {{1: 3}}"),
        ({"size": 3}, "size must be 2, got {1: 3}"),
        ({"digest": "b"}, "those that are left are not alike"),
        ({"losses": [1.0, 1.0]}, "the loss of 1 went from 1.0 to 1.0"),
    ):
        assert run.violations({0: report, 1: {**report, **change}}) == [words]
