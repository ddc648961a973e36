"""Between hosts: what is an average against ``MPI_Allreduce`` and torch's over gloo?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks import peers
from benchmarks.between_hosts import COUNT, LAYOUTS, LINK, PIECES, RATE_GBIT, SETTING, link_limit_s
from benchmarks.jobs import pythons, run_on_hosts, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report
from testbed import NotAvailable

MPI, GLOO = "MPI_Allreduce and scaling", "torch average_parameters, gloo"
MOST, LEAST_AT_4X2 = 1.1, 2.0


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world()
    arena = localsgd.Arena(peers.tensors(COUNT, PIECES), comm)
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: localsgd.average_parameters(arena),
        MPI: peers.mpi_mean(np.ones(COUNT, np.float32)),
    }
    with_torch = peers.has_torch()
    if with_torch:
        peers.join_gloo()
        ways[GLOO] = peers.torch_mean(COUNT, PIECES)
    times = in_turn_on_all_ranks(ways, options["rounds"])
    if with_torch:
        peers.leave_gloo()
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("hosts_peers", f"{__doc__} {SETTING}")
    for library in pythons():
        for layout, ranks in LAYOUTS.items():
            setting = f"{library}, {layout}"
            options = {"rounds": rounds}
            try:
                times = run_on_hosts("benchmarks.hosts_peers", ranks, RATE_GBIT, options, library)
            except NotAvailable as reason:
                report.goals.append(_goal(layout, setting, None, str(reason)))
                return report
            # The most that anybody can be faster than a peer is the peer's ratio to this.
            spreads = report.add_times(setting, {**times, LINK: [link_limit_s(len(ranks))]})
            del spreads[LINK]
            ours = spreads.pop(OURS).median
            ratio = ours / min(spread.median for spread in spreads.values())
            report.goals.append(_goal(layout, setting, ratio))
    return report


def _goal(layout: str, setting: str, ratio: float | None, reason: str = "") -> Goal:
    if layout == "4x2":
        faster = None if ratio is None else 1 / ratio
        unit = "times faster than the faster peer"
        return Goal("hosts-peers", setting, faster, LEAST_AT_4X2, True, unit, reason)
    return Goal("hosts-peers", setting, ratio, MOST, False, "times the faster peer", reason)


if __name__ == "__main__":
    script(measure, worker, rounds=11)
