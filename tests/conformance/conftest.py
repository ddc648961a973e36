"""Gives a test that takes ``workers`` every group that this process can take part in."""

from __future__ import annotations

import pytest

from backends import available, under_mpi

# On threads a test has these alone unless it is marked every_layout; under MPI all of a size.
FEW = ("1", "1+1", "3", "2+1", "0,2/1", "4", "2+2", "3+2+1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workers" in metafunc.fixturenames:
        marks = [pytest.mark.mpi] if under_mpi() else []
        few = metafunc.definition.get_closest_marker("every_layout") is None
        params = [
            pytest.param(workers, marks=marks, id=str(workers))
            for workers in available()
            if not few or workers.backend != "threads" or workers.hosts in FEW
        ]
        metafunc.parametrize("workers", params)
