"""On one host: what does an average of few numbers cost against MPI's and gloo's?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks import peers
from benchmarks.jobs import pythons, run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

COUNT, RANKS, CALLS = 1000, 4, 50
MOST = 1.5
MPI, GLOO = "MPI_Allreduce and scaling", "torch average_parameters, gloo"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world()
    shared = comm.allocate(COUNT, np.float32)
    shared[...] = 1.0
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: comm.allreduce(shared, "mean"),
        MPI: peers.mpi_mean(np.ones(COUNT, np.float32)),
    }
    with_torch = peers.has_torch()
    if with_torch:
        peers.join_gloo()
        ways[GLOO] = peers.torch_mean(COUNT, 1)
    times = in_turn_on_all_ranks(ways, options["rounds"], calls=CALLS)
    if with_torch:
        peers.leave_gloo()
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("host_small", f"{__doc__} {COUNT:,} float32, means of {CALLS} calls.")
    for library in pythons():
        setting = f"{library}, {RANKS} ranks"
        times = run_here("benchmarks.host_small", RANKS, {"rounds": rounds}, library)
        spreads = report.add_times(setting, times)
        ours = spreads[OURS].median
        ratio = ours / spreads[MPI].median
        report.goals.append(Goal("host-small", setting, ratio, MOST, False, "times MPI's"))
        if GLOO in spreads:
            ratio = ours / spreads[GLOO].median
            report.goals.append(Goal("host-small", setting, ratio, 1, False, "times gloo's"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=21)
