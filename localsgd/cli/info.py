"""What this machine and this environment offer a job, as a table."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from rich import box
from rich.console import Console
from rich.table import Table

from localsgd.cli.launcher import LaunchError, find_mpirun
from localsgd.cli.leftovers import without_leftovers
from localsgd.comm.memory import available_bytes, why_not_shared

PACKAGES = ("localsgd", "numpy", "mpi4py", "ml_dtypes", "torch")


def show() -> None:
    """Prints the table."""
    table = Table(box=box.SIMPLE, show_header=False)
    with without_leftovers():
        for name, value in rows():
            table.add_row(name, value)
    Console().print(table)


def rows() -> Iterator[tuple[str, str]]:
    """What is known, line by line; starts MPI in this process."""
    yield from _mpi()
    reason = why_not_shared()
    shared = "memfd, opened through /proc/PID/fd" if reason is None else f"no: {reason}"
    yield "memory shared by ranks of a host", shared
    yield "memory available", f"{available_bytes() / 2**30:.1f} GiB"
    yield "Python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def _mpi() -> Iterator[tuple[str, str]]:
    try:
        launcher = find_mpirun()
        yield "launcher", f"{launcher.path} ({launcher.library})"
    except LaunchError as error:
        yield "launcher", str(error)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        yield "MPI library", f"none loads: {str(error).splitlines()[0]}"
        return
    yield "MPI library", MPI.Get_library_version().split(",")[0].splitlines()[0].strip("\0 ")
    yield "MPI standard", ".".join(str(part) for part in MPI.Get_version())
    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    yield "thread level", levels[MPI.Query_thread()]
    tolerant = "Open MPI" in MPI.Get_library_version() and MPI.Get_version() >= (3, 1)
    yield "fault tolerance", "ULFM, with mpirun --with-ft ulfm" if tolerant else "none"
    from localsgd.comm import world

    yield "workers here", repr(world())
    MPI.Finalize()
