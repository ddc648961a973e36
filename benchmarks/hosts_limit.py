"""Between hosts: how close to the link's limit is an average?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import localsgd
from benchmarks import peers
from benchmarks.between_hosts import COUNT, LAYOUTS, LINK, PIECES, RATE_GBIT, SETTING, link_limit_s
from benchmarks.jobs import pythons, run_on_hosts, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report
from testbed import NotAvailable

MOST = 1.25


def worker(options: Mapping[str, Any]) -> list[float] | None:
    comm = localsgd.world()
    arena = localsgd.Arena(peers.tensors(COUNT, PIECES), comm)
    ways = {OURS: lambda: localsgd.average_parameters(arena)}
    times = in_turn_on_all_ranks(ways, options["rounds"])
    return times[OURS] if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("hosts_limit", f"{__doc__} {SETTING}")
    unit = "times the limit"
    for library in pythons():
        for layout, ranks in LAYOUTS.items():
            setting = f"{library}, {layout}"
            options = {"rounds": rounds}
            try:
                seconds = run_on_hosts("benchmarks.hosts_limit", ranks, RATE_GBIT, options, library)
            except NotAvailable as reason:
                report.goals.append(
                    Goal("hosts-limit", setting, None, MOST, False, unit, str(reason))
                )
                return report
            times = {OURS: seconds, LINK: [link_limit_s(len(ranks))]}
            spreads = report.add_times(setting, times, LINK)
            ratio = spreads[OURS].median / spreads[LINK].median
            report.goals.append(Goal("hosts-limit", setting, ratio, MOST, False, unit))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=15)
