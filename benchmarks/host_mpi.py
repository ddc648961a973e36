"""On one host: how much faster is an average than ``MPI_Allreduce`` in place and scaling?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks import peers
from benchmarks.jobs import pythons, run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

COUNT = 25_600_000
MPI = "MPI_Allreduce and scaling"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world()
    shared = comm.allocate(COUNT, np.float32)
    shared[...] = 1.0
    ways = {
        OURS: lambda: comm.allreduce(shared, "mean"),
        MPI: peers.mpi_mean(np.ones(COUNT, np.float32)),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("host_mpi", f"{__doc__} {COUNT / 1e6} M float32.")
    for library in pythons():
        for ranks in (2, 4):
            setting = f"{library}, {ranks} ranks"
            times = run_here("benchmarks.host_mpi", ranks, {"rounds": rounds}, library)
            spreads = report.add_times(setting, times)
            faster = spreads[MPI].median / spreads[OURS].median
            report.goals.append(Goal("host-mpi", setting, faster, 5, True, "times faster"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=15)
