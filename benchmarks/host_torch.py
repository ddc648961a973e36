"""On one host: how much faster is an average than torch's over gloo?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import localsgd
from benchmarks import peers
from benchmarks.jobs import run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

COUNT, PIECES = 25_600_000, 160
# More is wanted at 4 ranks, which the compiled loop was made for.
LEAST = {2: 15, 4: 20}
TORCH = "torch average_parameters, gloo"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    comm = localsgd.world()
    arena = localsgd.Arena(peers.tensors(COUNT, PIECES), comm)
    assert peers.has_torch()
    peers.join_gloo()
    ways = {
        OURS: lambda: localsgd.average_parameters(arena),
        TORCH: peers.torch_mean(COUNT, PIECES),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"])
    peers.leave_gloo()
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("host_torch", f"{__doc__} {COUNT / 1e6} M float32 in {PIECES} tensors.")
    for ranks, least in LEAST.items():
        times = run_here("benchmarks.host_torch", ranks, {"rounds": rounds})
        spreads = report.add_times(f"{ranks} ranks", times)
        faster = spreads[TORCH].median / spreads[OURS].median
        setting = f"{ranks} ranks"
        report.goals.append(Goal("host-torch", setting, faster, least, True, "times faster"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=15)
