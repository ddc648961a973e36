"""On one host: how much faster than plain DDP over gloo is averaging gradients in every step?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import peers
from benchmarks.jobs import run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

LEAST, CALLS, ALWAYS = 1.5, 4, 10**9
HOOK, DDP = "DDP with our hook", "DDP, gloo"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import localsgd.torch as lt
    from benchmarks.torch_models import inner_optimizer, linear_layers, training_step

    torch.set_num_threads(1)
    comm = lt.world()
    peers.join_gloo()
    mine, hooked = linear_layers(), DistributedDataParallel(linear_layers())
    averager = lt.PeriodicModelAverager(ALWAYS, ALWAYS)
    stage = lt.GradientStage(mine, averager)
    wrapped = lt.PostLocalSGDOptimizer(inner_optimizer(mine), averager, gradients=stage)
    hooked.register_comm_hook(lt.PostLocalSGDState(None, None, ALWAYS), lt.post_localSGD_hook)
    theirs = DistributedDataParallel(linear_layers())
    ways = {
        OURS: training_step(mine, wrapped, comm.rank),
        HOOK: training_step(hooked, inner_optimizer(hooked), comm.rank),
        DDP: training_step(theirs, inner_optimizer(theirs), comm.rank),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"], calls=CALLS)
    peers.leave_gloo()
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    size = "8 linear layers of 1024, batch 32, SGD with momentum, one thread each"
    report = Report("torch_sync", f"{__doc__} Whole steps; {size}.")
    for ranks in (2, 4):
        times = run_here("benchmarks.torch_sync", ranks, {"rounds": rounds})
        spreads = report.add_times(f"{ranks} ranks", times)
        faster = spreads[DDP].median / spreads[OURS].median
        setting = f"{ranks} ranks"
        report.goals.append(Goal("torch-sync", setting, faster, LEAST, True, "times faster"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=9)
