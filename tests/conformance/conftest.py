"""Gives a test that takes ``workers`` every group that this process can take part in."""

from __future__ import annotations

import pytest

from backends import available, under_mpi

# On threads a test marked few_layouts has these alone; under MPI it has all of a size.
FEW = ("1", "1+1", "3", "2+1", "0,2/1", "4", "2+2", "3+2+1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workers" in metafunc.fixturenames:
        marks = [pytest.mark.mpi] if under_mpi() else []
        few = metafunc.definition.get_closest_marker("few_layouts") is not None
        params = [
            pytest.param(workers, marks=marks, id=str(workers))
            for workers in available()
            if not few or workers.backend != "threads" or workers.hosts in FEW
        ]
        metafunc.parametrize("workers", params)
