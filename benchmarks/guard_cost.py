"""On one host: what does a round cost that lets no NaN and no infinity pass, against one that does?

It looks at every number while the average has it in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import Times, in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report
from localsgd import Arena, Guard, ModelAverager, every

COUNT = 25_600_000
OFF = "guard off"
_MOST = 1.1


def worker(options: Mapping[str, Any]) -> Times | None:
    comm = localsgd.world()
    guards = {OURS: Guard(), "leave out": Guard("leave out"), OFF: None}
    ways = {}
    # One arena, since memory's place decides a tenth of a round's time.
    arena = Arena({"w": np.ones(COUNT, np.float32)}, comm, grad=False)
    for name, guard in guards.items():
        averager = ModelAverager(every(1), comm, guard=guard)
        ways[name] = lambda averager=averager: averager.average_parameters(arena)
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("guard_cost", f"{(__doc__ or '').splitlines()[0]} {COUNT / 1e6} M float32.")
    for ranks in (2, 4):
        found = run_here("benchmarks.guard_cost", ranks, {"rounds": rounds})
        spreads = report.add_times(f"{ranks} ranks", found, baseline=OFF)
        for name in (OURS, "leave out"):
            ratio = spreads[name].median / spreads[OFF].median
            setting = f"{ranks} ranks" + (f", {name}" if name != OURS else "")
            report.goals.append(
                Goal("guard-cost", setting, ratio, _MOST, False, "times an average")
            )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=31)
