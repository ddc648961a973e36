"""Gives a test that takes ``workers`` every group that this process can take part in."""

from __future__ import annotations

import pytest

from backends import available, under_mpi

# The layouts that a test has on threads; under MPI it has all of a size. One that is marked
# every_layout has all on threads, too, one marked layouts those that it names, and one marked
# one_layout one of every size, under MPI, too.
ONE = ("1", "1+1", "2+1", "2+2", "3+2+1")
FEW = ("1", "1+1", "3", "2+1", "0,2/1", "4", "2+2", "3+2+1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workers" in metafunc.fixturenames:
        marks = [pytest.mark.mpi] if under_mpi() else []
        every = metafunc.definition.get_closest_marker("every_layout") is not None
        named = metafunc.definition.get_closest_marker("layouts")
        layouts = FEW if named is None else named.args
        one = metafunc.definition.get_closest_marker("one_layout") is not None
        params = [
            pytest.param(workers, marks=marks, id=str(workers))
            for workers in available()
            if (workers.hosts in ONE if one else every or under_mpi() or workers.hosts in layouts)
        ]
        metafunc.parametrize("workers", params)
