"""The pages of frameworks hold: their programs run as they stand, their diffs are few lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pages import PAGES, blocks, needs_frameworks, program

LIMIT_S = 600
MPI = ["-m", "localsgd.cli", "run", "-n", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PAGE, JAX = [page for page in PAGES if needs_frameworks(page)]

pytestmark = pytest.mark.limit_s(LIMIT_S)


def run(page: Path, launch: list[str], folder: Path) -> str:
    """What the page's program, started so, has said of what went wrong."""
    script = folder / "train.py"
    script.write_text(program(page))
    ended = subprocess.run(
        [sys.executable, *launch, str(script)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("launch", [[], MPI], ids=["alone", "two"])
def test_program_of_the_page_of_jax_runs(launch: list[str], tmp_path: Path) -> None:
    run(JAX, launch, tmp_path)


@pytest.mark.parametrize("launch", [[], MPI, TORCHRUN], ids=["alone", "two", "torchrun"])
def test_program_of_the_page_runs(launch: list[str], tmp_path: Path) -> None:
    assert "DistributedDataParallel" not in run(PAGE, launch, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_each_framework_changes_at_most_five_lines() -> None:
    """The import, which diffs leave out, is one more."""
    diffs = [diff for page in (PAGE, JAX) for diff in blocks(page, "diff")]
    changed = [sum(line.startswith("+") for line in diff.splitlines()) for diff in diffs]
    assert len(changed) == 4
    assert max(changed) + 1 <= 5
