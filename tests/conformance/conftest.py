"""Gives a test that takes ``workers`` every group that this process can take part in."""

from __future__ import annotations

import pytest

from backends import available, under_mpi


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workers" in metafunc.fixturenames:
        marks = [pytest.mark.mpi] if under_mpi() else []
        params = [pytest.param(workers, marks=marks, id=str(workers)) for workers in available()]
        metafunc.parametrize("workers", params)
