"""The page of frameworks holds: its program runs as it stands, and its diffs are few lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pages import PAGES, blocks, needs_frameworks, program

LIMIT_S = 600
MPI = ["-m", "localsgd.cli", "run", "-n", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
[PAGE] = [page for page in PAGES if needs_frameworks(page)]

pytestmark = pytest.mark.limit_s(LIMIT_S)


@pytest.mark.parametrize("launch", [[], MPI, TORCHRUN], ids=["alone", "two", "torchrun"])
def test_program_of_the_page_runs(launch: list[str], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(program(PAGE))
    ended = subprocess.run(
        [sys.executable, *launch, str(script)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert "DistributedDataParallel" not in ended.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_each_framework_changes_at_most_five_lines() -> None:
    """The import, which diffs leave out, is one more."""
    changed = [
        sum(line.startswith("+") for line in diff.splitlines()) for diff in blocks(PAGE, "diff")
    ]
    assert len(changed) == 3
    assert max(changed) + 1 <= 5
