"""What does ``average_parameters`` cost in a step in which no average is due?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_alone, script
from benchmarks.measure import Times, in_turn
from benchmarks.report import Goal, Report

CALLS, RARELY = 20_000, 10**9
MOST_US = 2.0


def worker(options: Mapping[str, Any]) -> Times:
    arena = localsgd.Arena({"w": np.ones(1000, np.float32)})
    periodic = localsgd.PeriodicModelAverager(RARELY)
    hierarchical = localsgd.HierarchicalModelAverager({RARELY // 4: 1, RARELY: "world"})
    plain = localsgd.ModelAverager(localsgd.every(RARELY))
    averagers = {"PeriodicModelAverager": periodic, "HierarchicalModelAverager": hierarchical}
    averagers["ModelAverager(every(p))"] = plain
    # The turns to warm up hold the round that some have after their first step.
    ways = {
        name: lambda averager=averager: averager.average_parameters(arena)
        for name, averager in averagers.items()
    }
    return in_turn(ways, options["rounds"], calls=CALLS)


def measure(rounds: int) -> Report:
    report = Report("idle_step", f"{__doc__} Means of {CALLS:,} calls.")
    times = run_alone("benchmarks.idle_step", {"rounds": rounds})
    for name, spread in report.add_times("1 rank", times, "PeriodicModelAverager").items():
        measured = spread.median * 1e6
        report.goals.append(Goal("idle-step", name, measured, MOST_US, False, "µs"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=15)
