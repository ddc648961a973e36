"""``test_any_size.py`` passes on ranks that mpirun, and that torchrun, has started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

BODIES = Path(__file__).with_name("test_any_size.py")


def passes(launch: list[str], ranks: int, **env: str) -> None:
    words = [*launch, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(BODIES)]
    ended = subprocess.run(
        words,
        cwd=BODIES.parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "LOCALSGD_TEST_RANKS": str(ranks), **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("hosts", ["2+1", "4"])
def test_under_mpirun(hosts: str) -> None:
    ranks = sum(map(int, hosts.split("+")))
    launch = [sys.executable, "-m", "localsgd.cli", "run", "-n", str(ranks), "--", sys.executable]
    passes(launch, ranks, LOCALSGD_HOSTS=hosts)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def test_under_torchrun() -> None:
    passes([*TORCHRUN, "3"], 3, LOCALSGD_HOSTS="2+1")


def test_under_torchrun_that_a_launcher_of_mpi_has_started() -> None:
    """``srun torchrun``: the variables are those of the process of torchrun itself."""
    passes([*TORCHRUN, "2"], 2, PMIX_RANK="0", PMI_RANK="0", PMI_SIZE="1")
