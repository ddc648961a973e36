"""What holds for every test: a time limit that says where each rank stood."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from backends import under_mpi
from watchdog import watched

LIMIT_S = 120

# What compares compiled loops with numpy waits for them.
os.environ.setdefault("LOCALSGD_COMPILE", "first")

# How long an example takes says more of what else the machine does.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# Comparisons with torch run where torch is: `make test-torch`.
collect_ignore = [] if find_spec("torch") else ["with_torch"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    own = item.get_closest_marker("limit_s")
    with watched(own.args[0] if own else LIMIT_S):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Ends the whole job when a test fails on one rank: the others may wait for it for ever."""
    report = yield
    if report.failed and under_mpi():  # type: ignore[attr-defined]
        from mpi4py import MPI

        print(f"rank {MPI.COMM_WORLD.rank}: {item.nodeid}", file=sys.__stderr__)
        print(report.longreprtext, file=sys.__stderr__, flush=True)  # type: ignore[attr-defined]
        MPI.COMM_WORLD.Abort(1)
    return report
