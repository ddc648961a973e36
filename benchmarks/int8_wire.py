"""Between two hosts on a slow link: what does a round in int8 cost against one in float32?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.between_hosts import COUNT
from benchmarks.jobs import pythons, run_on_hosts, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report
from localsgd import Arena, ModelAverager, codecs, every
from testbed import NotAvailable

RATE_GBIT, LEAST = 0.1, 3.3
INT8 = "localsgd, int8 with error feedback"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world()
    ways = {}
    for name, compress in ((OURS, None), (INT8, codecs.Int8())):
        arena = Arena({"w": np.ones(COUNT, np.float32)}, comm, grad=False)
        averager = ModelAverager(every(1), comm, compress=compress)
        averager.begin(arena)
        arena.flat[:] += np.random.default_rng(comm.rank).normal(size=COUNT)
        ways[name] = lambda averager=averager, arena=arena: averager.average_parameters(arena)
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("int8_wire", f"{__doc__} {4 * COUNT / 1e6:g} MB, {RATE_GBIT * 1000:g} Mbit/s.")
    for library in pythons():
        setting = f"{library}, 2x1"
        options = {"rounds": rounds}
        try:
            times = run_on_hosts("benchmarks.int8_wire", (1, 1), RATE_GBIT, options, library)
        except NotAvailable as reason:
            unit = "times as fast"
            report.goals.append(Goal("int8-wire", setting, None, LEAST, True, unit, str(reason)))
            return report
        spreads = report.add_times(setting, times)
        ratio = spreads[OURS].median / spreads[INT8].median
        report.goals.append(Goal("int8-wire", setting, ratio, LEAST, True, "times as fast"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=5)
