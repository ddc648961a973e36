"""On one host: how much faster than plain DDP over gloo is averaging gradients in every step?

DDP has jobs of its own, in turn with ours, since placing parameters lets malloc keep freed memory:
what that setting alone gives DDP stands beside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import peers
from benchmarks.jobs import jobs_in_turn, run_here, script
from benchmarks.measure import Times, in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

LEAST, CALLS, JOBS, ALWAYS = 1.5, 4, 2, 10**9
HOOK, DDP = "DDP with our hook", "DDP, gloo"
DDP_KEPT = f"{DDP}, memory kept as ours"


def ours() -> dict[str, Callable[[], None]]:
    """A step of ours, and one of DDP with our hook."""
    from torch.nn.parallel import DistributedDataParallel

    import localsgd.torch as lt
    from benchmarks.torch_models import inner_optimizer, linear_layers, training_step

    rank = lt.world().rank
    peers.join_gloo()
    mine, hooked = linear_layers(), DistributedDataParallel(linear_layers())
    averager = lt.PeriodicModelAverager(ALWAYS, ALWAYS)
    stage = lt.GradientStage(mine, averager)
    wrapped = lt.PostLocalSGDOptimizer(inner_optimizer(mine), averager, gradients=stage)
    hooked.register_comm_hook(lt.PostLocalSGDState(None, None, ALWAYS), lt.post_localSGD_hook)
    return {
        OURS: training_step(mine, wrapped, rank),
        HOOK: training_step(hooked, inner_optimizer(hooked), rank),
    }


def torchs() -> dict[str, Callable[[], None]]:
    """A step of DDP by torch alone."""
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.torch_models import inner_optimizer, linear_layers, training_step

    peers.join_gloo()
    theirs = DistributedDataParallel(linear_layers())
    return {DDP: training_step(theirs, inner_optimizer(theirs), peers.mpi_rank())}


MAKERS = {"ours": ours, "torchs": torchs}


def worker(options: Mapping[str, Any]) -> Times | None:
    import torch

    torch.set_num_threads(1)
    times = in_turn_on_all_ranks(MAKERS[options["maker"]](), options["rounds"], calls=CALLS)
    assert ("localsgd" in sys.modules) == (options["maker"] == "ours")
    peers.leave_gloo()
    return times if peers.mpi_rank() == 0 else None


def measure(rounds: int) -> Report:
    size = "8 linear layers of 1024, batch 32, SGD with momentum, one thread each"
    question = " ".join((__doc__ or "").split())
    report = Report("torch_sync", f"{question} Whole steps; {size}; {JOBS} jobs each.")
    for ranks in (2, 4):

        def job(
            maker: str, environment: Mapping[str, str] | None = None, ranks: int = ranks
        ) -> Callable[[], Times]:
            options = {"rounds": rounds, "maker": maker}
            return lambda: run_here(
                "benchmarks.torch_sync", ranks, options, environment=environment
            )

        ways = {
            OURS: job("ours"),
            DDP: job("torchs"),
            DDP_KEPT: job("torchs", peers.MEMORY_KEPT),
        }
        found = jobs_in_turn(ways, JOBS)
        times = {
            OURS: found[OURS][OURS],
            HOOK: found[OURS][HOOK],
            DDP: found[DDP][DDP],
            DDP_KEPT: found[DDP_KEPT][DDP],
        }
        spreads = report.add_times(f"{ranks} ranks", times)
        faster = spreads[DDP].median / spreads[OURS].median
        setting = f"{ranks} ranks"
        report.goals.append(Goal("torch-sync", setting, faster, LEAST, True, "times faster"))
        same = spreads[DDP_KEPT].median / spreads[OURS].median
        report.notes.append(
            f"{ranks} ranks: where DDP is given the same setting of malloc, ours is {same:.2f} "
            "times faster."
        )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=4)
