"""Between hosts: what does an average of few numbers cost against ``MPI_Allreduce``?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks import peers
from benchmarks.host_small import CALLS, COUNT, MOST, MPI
from benchmarks.jobs import pythons, run_on_hosts, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report
from testbed import NotAvailable

RANKS, LAYOUT = (2, 2), "2x2"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world()
    shared = comm.allocate(COUNT, np.float32)
    shared[...] = 1.0
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: comm.allreduce(shared, "mean"),
        MPI: peers.mpi_mean(np.ones(COUNT, np.float32)),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"], calls=CALLS)
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report(
        "hosts_small",
        f"{__doc__} {COUNT:,} float32, means of {CALLS} calls; no limit nor delay on the links.",
    )
    for library in pythons():
        setting = f"{library}, {LAYOUT}"
        unit = "times MPI's"
        options = {"rounds": rounds}
        try:
            times = run_on_hosts("benchmarks.hosts_small", RANKS, None, options, library)
        except NotAvailable as reason:
            report.goals.append(Goal("hosts-small", setting, None, MOST, False, unit, str(reason)))
            return report
        spreads = report.add_times(setting, times)
        ratio = spreads[OURS].median / spreads[MPI].median
        report.goals.append(Goal("hosts-small", setting, ratio, MOST, False, unit))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=21)
