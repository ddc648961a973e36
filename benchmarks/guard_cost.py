"""On one host: what does it cost to see to it that no NaN and no infinity enters an average?

The guard looks at every number while the average has it in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import Times, in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

COUNT = 25_600_000
PLAIN = "guard off"
_MOST = 1.1


def worker(options: Mapping[str, Any]) -> Times | None:
    comm = localsgd.world()
    a, b = (comm.allocate(COUNT, np.float32) for _ in range(2))
    a[...] = b[...] = 1
    ways = {
        OURS: lambda: comm.allreduce(a, "mean", finite=True),
        PLAIN: lambda: comm.allreduce(b, "mean"),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("guard_cost", f"{(__doc__ or '').splitlines()[0]} {COUNT / 1e6} M float32.")
    for ranks in (2, 4):
        found = run_here("benchmarks.guard_cost", ranks, {"rounds": rounds})
        spreads = report.add_times(f"{ranks} ranks", found, baseline=PLAIN)
        ratio = spreads[OURS].median / spreads[PLAIN].median
        report.goals.append(
            Goal("guard-cost", f"{ranks} ranks", ratio, _MOST, False, "times an average")
        )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=31)
