"""What this machine and this environment offer a job, as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from rich import box
from rich.console import Console
from rich.table import Table

from localsgd.cli.launcher import LaunchError, find_mpirun
from localsgd.cli.leftovers import Leftovers
from localsgd.comm import world
from localsgd.comm.memory import available_bytes, why_not_shared

PACKAGES = ("localsgd", "numpy", "mpi4py", "ml_dtypes", "torch")


def show() -> None:
    """Prints the table; under a launcher, on the first rank."""
    leftovers = Leftovers(os.environ)
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in (*_launcher(), *_mpi(leftovers), *_machine(), *_versions()):
        table.add_row(name, value)
    if world().rank == 0:
        Console().print(table)


def _launcher() -> Iterator[tuple[str, str]]:
    try:
        found = find_mpirun()
        yield "launcher", f"{found.path} ({found.library})"
    except LaunchError as error:
        yield "launcher", str(error)


def _mpi(leftovers: Leftovers) -> Iterator[tuple[str, str]]:
    """What the library says; starts MPI in this process, and ends it."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        yield "MPI library", f"none loads: {str(error).splitlines()[0]}"
        return
    name = " ".join(MPI.Get_library_version().strip("\0").split())
    yield "MPI library", name.split(",")[0].split(" MPICH Release")[0].replace(" Version:", "")
    yield "MPI standard", ".".join(str(part) for part in MPI.Get_version())
    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    yield "thread level", levels[MPI.Query_thread()]
    yield "fault tolerance", _fault_tolerance(name)
    group = world()
    yield "workers", str(group.size)
    yield "workers on each host", str(group.topology)
    leftovers.look([os.getpid()])
    MPI.Finalize()
    leftovers.remove()


def _fault_tolerance(library: str) -> str:
    """How a job can outlive a rank, if it can."""
    from mpi4py import MPI

    try:
        MPI.COMM_SELF.Is_revoked()
    except (NotImplementedError, MPI.Exception):
        return "none"
    # MPICH has the functions, but its launcher takes the job down with the first rank.
    return "ULFM, with mpirun --with-ft ulfm" if "Open MPI" in library else "none"


def _machine() -> Iterator[tuple[str, str]]:
    reason = why_not_shared()
    shared = "memfd, opened through /proc/PID/fd" if reason is None else f"no: {reason}"
    yield "memory shared by ranks of a host", shared
    yield "memory available", f"{available_bytes() / 2**30:.1f} GiB"
    yield "cores", str(os.cpu_count())


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
