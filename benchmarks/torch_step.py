"""On one host: how much faster than torch's post-local SGD is a whole training step?

Theirs is DDP with the hook in its local phase, which sends nothing, and the wrapper. The bare step
is forward, backward and SGD without either: nobody can be faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from benchmarks import peers
from benchmarks.jobs import run_here, script
from benchmarks.measure import in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

LEAST = {1: 2.5, 4: 1.8, 16: 1.5}
CALLS = 16
TORCH = "torch DDP, hook and wrapper, gloo"
BARE = "bare step, nothing averaged"


def worker(options: Mapping[str, Any]) -> dict[str, list[float]] | None:
    import torch
    from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as hook
    from torch.distributed.algorithms.model_averaging import averagers
    from torch.distributed.optim import PostLocalSGDOptimizer
    from torch.nn.parallel import DistributedDataParallel

    import localsgd.torch as lt
    from benchmarks.torch_models import inner_optimizer, linear_layers, training_step

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    period: int = options["period"]
    comm = lt.world()
    peers.join_gloo()
    mine = linear_layers()
    lt.adopt(mine)
    wrapped = lt.PostLocalSGDOptimizer(inner_optimizer(mine), lt.PeriodicModelAverager(period))
    theirs = DistributedDataParallel(linear_layers())
    make_state: Any = hook.PostLocalSGDState
    state = make_state(None, None, 0, post_local_gradient_allreduce=False)
    theirs.register_comm_hook(state, hook.post_localSGD_hook)
    averager = averagers.PeriodicModelAverager(period)
    torchs = PostLocalSGDOptimizer(inner_optimizer(theirs), averager)
    bare = linear_layers()
    ways = {
        OURS: training_step(mine, wrapped, comm.rank),
        TORCH: training_step(theirs, torchs, comm.rank),
        BARE: training_step(bare, inner_optimizer(bare), comm.rank),
    }
    times = in_turn_on_all_ranks(ways, options["rounds"], calls=CALLS)
    peers.leave_gloo()
    return times if comm.rank == 0 else None


def measure(rounds: int) -> Report:
    question = " ".join((__doc__ or "").split())
    size = "8 linear layers of 1024, batch 32, SGD with momentum, 2 ranks, one thread each"
    report = Report("torch_step", f"{question} {size}.")
    for period, least in LEAST.items():
        times = run_here("benchmarks.torch_step", 2, {"rounds": rounds, "period": period})
        spreads = report.add_times(f"period {period}", times)
        faster = spreads[TORCH].median / spreads[OURS].median
        setting = f"2 ranks, period {period}"
        report.goals.append(Goal("torch-step", setting, faster, least, True, "times faster"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=7)
