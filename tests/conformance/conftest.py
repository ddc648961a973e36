"""Gives a test that takes ``workers`` every group that this process can take part in."""

from __future__ import annotations

import pytest

from backends import Workers, available, under_mpi

# The layouts that a test has on threads; under MPI it has all of a size, but for six ranks, which
# are many for a small machine. One that is marked every_layout has all everywhere, one marked
# layouts those that it names on threads, and one marked one_layout one of every size.
FEW = ("1", "1+1", "3", "2+1", "0,2/1", "4", "2+2", "3+2+1")
ONE = ("1", "1+1", "2+1", "2+2", "3+2+1")
OF_SIX = ("6", "3+2+1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workers" in metafunc.fixturenames:
        marks = [pytest.mark.mpi] if under_mpi() else []
        params = [
            pytest.param(workers, marks=marks, id=str(workers))
            for workers in available()
            if _is_wanted(workers, metafunc.definition)
        ]
        metafunc.parametrize("workers", params)


def _is_wanted(workers: Workers, test: pytest.Item) -> bool:
    if test.get_closest_marker("every_layout") is not None:
        return True
    if test.get_closest_marker("one_layout") is not None:
        return workers.hosts in ONE
    if under_mpi():
        return workers.size < 6 or workers.hosts in OF_SIX
    named = test.get_closest_marker("layouts")
    return workers.hosts in (FEW if named is None else named.args)
