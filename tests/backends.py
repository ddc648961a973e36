"""Runs one body on every rank of a group, on whatever backend there is.

Under ``mpirun`` the layouts are those of the job's size; otherwise every size runs on threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from localsgd.comm import Communicator, run_threads, solo, world

DEADLINE_S = 30.0
LAYOUTS = {
    1: ["1"],
    2: ["2", "1+1"],
    3: ["3", "2+1", "1+2", "0,2/1"],
    4: ["4", "2+2", "3+1", "0,2/1,3", "1+1+1+1"],
    6: ["6", "3+2+1", "0,3,5/1,4/2", "2+2+2"],
}


def under_mpi() -> bool:
    """Whether this process is a rank of an MPI job."""
    return any(name in os.environ for name in ("PMIX_RANK", "PMI_RANK"))


@dataclass(frozen=True)
class Workers:
    """A group that a test can run on.

    Attributes:
        backend: "solo", "threads" or "processes".
        hosts: the layout.
    """

    backend: str
    size: int
    hosts: str

    def run(self, body: Callable[..., object], *args: object) -> None:
        """Runs ``body(comm, *args)`` on every rank; what it asserts holds on each."""
        if self.backend == "solo":
            body(solo(), *args)
        elif self.backend == "threads":
            run_threads(self.size, body, *args, hosts=self.hosts, deadline_s=DEADLINE_S)
        else:
            body(self.world(), *args)

    def world(self) -> Communicator:
        return world(hosts=self.hosts, deadline_s=DEADLINE_S)

    def __str__(self) -> str:
        return f"{self.backend}-{self.hosts}"


def available() -> list[Workers]:
    """The groups that this process can take part in."""
    if under_mpi():
        from mpi4py import MPI

        size = MPI.COMM_WORLD.size
        return [Workers("processes", size, hosts) for hosts in LAYOUTS[size]]
    threads = [Workers("threads", size, hosts) for size in LAYOUTS for hosts in LAYOUTS[size]]
    return [Workers("solo", 1, "1"), *threads]
