"""One cluster for all tests under Slurm: two nodes of two CPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localsgd import run_threads
from slurm.training import train
from testbed.slurm import Slurm


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    with Slurm([2, 2]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the training ends with on hosts 2+2 if nothing happens to it; on threads."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_threads(4, lambda comm: train(comm, folder, signals=False), hosts="2+2")[0]
