"""Nothing of a job stays behind: a small part of ``make soak``, which does it many times."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import soak

pytestmark = pytest.mark.long


def test_averages_leave_nothing_behind() -> None:
    assert soak.averages_leave(4, 10) == []


@pytest.mark.parametrize("kind", soak.VICTIMS)
def test_a_job_killed_at_a_random_moment_leaves_nothing_behind(kind: str) -> None:
    assert soak.kill_leaves(kind, 2, random.Random(kind)) == []


def test_what_is_there_of_a_job_is_found(tmp_path: Path) -> None:
    """Its processes while it runs, and a file in its folder for temporary files."""
    job = soak.Soaked.start(2, 10**9, tmp_path)
    try:
        (tmp_path / "forgotten").touch()
        there = job.there()
        assert any(words.startswith("process") for words in there)
        assert str(tmp_path / "forgotten") in there
    finally:
        job.end()
