"""The check of GPUs, tried on the CPU: what it says without one, and that its parts work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import check_gpu
import localsgd.torch as ours
from carried import carried_by_gloo
from torch_ranks import run_ranks

SCRIPT = Path(check_gpu.__file__)


def ended(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(
        words,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_where_there_is_no_gpu_one_line_says_so() -> None:
    found = ended(CUDA_VISIBLE_DEVICES="")
    assert found.returncode == check_gpu.NO_GPU == 77
    assert found.stdout.splitlines() == ["no GPU here: nothing was checked"]
    assert not found.stderr


@pytest.mark.parametrize("part", check_gpu.PARTS)
@pytest.mark.parametrize("there", [False, True])
def test_every_part_finds_what_must_hold(part: str, there: bool) -> None:
    """On the CPU, with averages on the host, and as on a device."""

    def body(rank: int) -> Any:
        def rows() -> list[check_gpu.Row]:
            return check_gpu.PARTS[part](ours.world(), torch.device("cpu"), check_gpu.SMALL)

        if not there:
            return [(row.what, row.good) for row in rows()]
        with carried_by_gloo():
            return [(row.what, row.good) for row in rows()]

    for found in run_ranks(2, body):
        assert found and all(good for _, good in found), found


@pytest.mark.long
def test_all_jobs_run_and_are_told_in_a_table() -> None:
    found = ended("--device", "cpu", "--small")
    assert found.returncode == 0, found.stdout + found.stderr
    names = {line.split("  ")[0] for line in found.stdout.splitlines()[1:]}
    assert names == {"one process", "MPI", "gloo"}


def test_what_is_wrong_is_marked() -> None:
    rows = {"MPI": [check_gpu.Row("a", "b"), check_gpu.Row("c", "d", good=False)]}
    first, good, bad = check_gpu.table("the card", rows).splitlines()
    assert first == f"the card, torch {torch.__version__}"
    assert good.split() == ["MPI", "a", "b"] and bad.split() == ["MPI", "c", "WRONG:", "d"]
