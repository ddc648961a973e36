"""On one host: how much faster than torch's averager is ours on the parameters of ResNet-50?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import peers
from benchmarks.jobs import run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

LEAST = 15.0
TORCH = "torch PeriodicModelAverager, gloo"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    import torch
    from torch.distributed.algorithms.model_averaging import averagers

    import localsgd.torch as lt
    from benchmarks.torch_models import resnet50_parameters

    torch.set_num_threads(1)
    comm = lt.world()
    peers.join_gloo()
    mine, theirs = resnet50_parameters(), resnet50_parameters()
    ours, torchs = lt.PeriodicModelAverager(1), averagers.PeriodicModelAverager(1)
    ways = {
        OURS: lambda: ours.average_parameters(mine),
        TORCH: lambda: torchs.average_parameters(theirs),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"])
    peers.leave_gloo()
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    report = Report("torch_average", f"{__doc__} 25.6 M float32 in 161 tensors.")
    for ranks in (2, 4):
        times = run_here("benchmarks.torch_average", ranks, {"rounds": rounds})
        spreads = report.add_times(f"{ranks} ranks", times)
        if ranks == 4:
            faster = spreads[TORCH].median / spreads[OURS].median
            goal = Goal("torch-average", f"{ranks} ranks", faster, LEAST, True, "times faster")
            report.goals.append(goal)
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=11)
