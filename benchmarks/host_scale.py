"""On one host: does the time per rank and byte grow with the number of ranks?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import Spread, Times, in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report, shown

COUNT, RANKS, JOBS = 4_000_000, (2, 4, 8, 16), 2
# What two runs of one thing differ by.
NOISE = 1.1


def worker(options: Mapping[str, Any]) -> list[float] | None:
    comm = localsgd.world()
    shared = comm.allocate(COUNT, np.float32)
    shared[...] = 1.0
    ways = {OURS: lambda: comm.allreduce(shared, "mean")}
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times[OURS] if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("host_scale", f"{__doc__} {COUNT / 1e6} M float32.")
    report.columns = ["ranks", "median", "quartiles", "per rank and byte", "ratio to 2 ranks"]
    times: Times = {str(ranks): [] for ranks in RANKS}
    for _ in range(JOBS):
        for ranks in RANKS:
            times[str(ranks)] += run_here("benchmarks.host_scale", ranks, {"rounds": rounds})
    per_byte = {}
    for ranks in RANKS:
        spread = Spread.of(times[str(ranks)])
        per_byte[ranks] = spread.median / ranks / (4 * COUNT)
        report.rows.append(
            [
                str(ranks),
                shown(spread.median),
                f"{shown(spread.low)} - {shown(spread.high)}",
                f"{per_byte[ranks] * 1e12:.3g} ps",
                f"{per_byte[ranks] / per_byte[2]:.2f}",
            ]
        )
    worst = max(RANKS[1:], key=lambda ranks: per_byte[ranks])
    ratio = per_byte[worst] / per_byte[2]
    report.goals.append(
        Goal("host-scale", f"{worst} ranks", ratio, NOISE, False, "times that of 2 ranks")
    )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=15)
