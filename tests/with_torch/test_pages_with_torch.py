"""Programs that need torch: of pages, and the example, alone and on ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pages import PAGES, ROOT, needs_frameworks, needs_torch, program

MPI = ["-m", "localsgd.cli", "run", "-n", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PAGES_WITH_TORCH = [page for page in PAGES if needs_torch(page) and not needs_frameworks(page)]


def output(*words: str, cwd: Path) -> str:
    ended = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False, cwd=cwd
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "launch", [pytest.param([], id="alone"), pytest.param(MPI, id="two", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("page", PAGES_WITH_TORCH, ids=lambda page: page.stem)
def test_program_runs(page: Path, launch: list[str], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(program(page))
    output(*launch, str(script), cwd=tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("launch", [MPI, TORCHRUN], ids=["mpirun", "torchrun"])
def test_the_transformer_learns_on_two_workers(launch: list[str], tmp_path: Path) -> None:
    """Equal guessing takes 6.6 bits per character; what moves is told by the period."""
    example = str(ROOT / "examples" / "chars_torch.py")
    lines = output(*launch, example, "--steps", "24", "--periods", "8", cwd=tmp_path).splitlines()
    rows = {" ".join(line.split()[:-5]): line.split()[-5:] for line in lines if " MB " in line}
    losses = [float(row[0]) for row in rows.values()]
    megabytes = [float(row[1].replace(",", "")) for row in rows.values()]
    assert list(rows) == ["gradients", "period 8"]
    assert max(losses) < 6.0
    assert megabytes[1] < megabytes[0] / 3
