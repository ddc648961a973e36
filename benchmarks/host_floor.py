"""On one host: what is an average against the floor, every rank copying its buffer once?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

COUNT = 25_600_000
COPY = "memcpy of the buffer by every rank"
_MOST = {2: 1.0, 4: 1.3}


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world()
    shared = comm.allocate(COUNT, np.float32)
    shared[...] = 1.0
    source, target = np.ones(COUNT, np.float32), np.zeros(COUNT, np.float32)
    ways = {
        OURS: lambda: comm.allreduce(shared, "mean"),
        COPY: lambda: np.copyto(target, source),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("host_floor", f"{__doc__} {COUNT / 1e6} M float32.")
    for ranks, most in _MOST.items():
        times = run_here("benchmarks.host_floor", ranks, {"rounds": rounds})
        spreads = report.add_times(f"{ranks} ranks", times)
        ratio = spreads[OURS].median / spreads[COPY].median
        report.goals.append(
            Goal("host-floor", f"{ranks} ranks", ratio, most, False, "times the copy")
        )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=31)
