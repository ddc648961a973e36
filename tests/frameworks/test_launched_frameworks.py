"""Every framework trains on 1 to 4 ranks that mpirun, and on 2 that torchrun, has started.

``make test-frameworks`` runs this, where the frameworks are; plain ``pytest`` leaves it out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FRAMEWORKS = sorted(path.stem for path in HERE.glob("*_on_ranks.py"))
# Far more than any takes: each rank of four imports the framework on a busy machine.
LIMIT_S = 900

# Longer than the time limit of a test, since a launch is all tests of a framework.
pytestmark = pytest.mark.limit_s(LIMIT_S)


def passes(launch: list[str], ranks: int, framework: str, folder: Path) -> None:
    words = [*launch, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*words, str(HERE / f"{framework}.py")],
        cwd=HERE.parents[1],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "LOCALSGD_TEST_RANKS": str(ranks),
            "LOCALSGD_TEST_FOLDER": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_under_mpirun(ranks: int, framework: str, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "localsgd.cli", "run", "-n", str(ranks), "--", sys.executable]
    passes(launch, ranks, framework, tmp_path)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_under_torchrun(framework: str, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    passes([*launch, "--nproc-per-node", "2"], 2, framework, tmp_path)
