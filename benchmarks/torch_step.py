"""On one host: how much faster than torch's post-local SGD is a whole training step?

Theirs is DDP with the hook in its local phase, which sends nothing, and the wrapper. The bare step
is forward, backward and SGD without either. Each has jobs of its own, in turn, since placing
parameters lets malloc keep freed memory: what that setting alone gives the others stands beside.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.jobs import jobs_in_turn, run_here, script
from benchmarks.measure import Times, in_turn_on_all_ranks
from benchmarks.report import OURS, Goal, Report

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

LEAST = {1: 2.5, 4: 1.8, 16: 1.5}
JOBS, FEWEST_STEPS, LONGEST = 3, 4, 16
TORCH, BARE = "torch DDP, hook and wrapper, gloo", "bare step, nothing averaged"
TORCH_KEPT, BARE_KEPT = f"{TORCH}, memory kept as ours", f"{BARE}, memory kept as ours"


def ours() -> tuple[nn.Module, Optimizer, Any]:
    """A model, its optimizer, and the averager, whose period is set for every turn."""
    import localsgd.torch as lt
    from benchmarks.torch_models import inner_optimizer, linear_layers

    model = linear_layers()
    lt.adopt(model)
    averager = lt.PeriodicModelAverager(1)
    return model, lt.PostLocalSGDOptimizer(inner_optimizer(model), averager), averager


def torchs() -> tuple[nn.Module, Optimizer, Any]:
    """As ``ours``, by torch alone."""
    from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as hook
    from torch.distributed.algorithms.model_averaging import averagers
    from torch.distributed.optim import PostLocalSGDOptimizer
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.torch_models import inner_optimizer, linear_layers

    peers.join_gloo()
    model = DistributedDataParallel(linear_layers())
    make_state: Any = hook.PostLocalSGDState
    state = make_state(None, None, 0, post_local_gradient_allreduce=False)
    model.register_comm_hook(state, hook.post_localSGD_hook)
    averager = averagers.PeriodicModelAverager(1)
    return model, PostLocalSGDOptimizer(inner_optimizer(model), averager), averager


def bare() -> tuple[nn.Module, Optimizer, Any]:
    """As ``ours``, without an averager."""
    from benchmarks.torch_models import inner_optimizer, linear_layers

    model = linear_layers()
    return model, inner_optimizer(model), None


MAKERS = {"ours": ours, "torchs": torchs, "bare": bare}


def worker(options: Mapping[str, Any]) -> Times | None:
    import torch

    from benchmarks.torch_models import training_step

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, optimizer, averager = MAKERS[options["maker"]]()
    step = training_step(model, optimizer, peers.mpi_rank())

    def steps_of(period: int) -> Callable[[], None]:
        def steps() -> None:
            if averager is not None:
                averager.period = period
            for _ in range(max(period, FEWEST_STEPS)):
                step()

        return steps

    periods = LEAST if averager is not None else [LONGEST]
    ways = {str(period): steps_of(period) for period in periods}
    times = in_turn_on_all_ranks(ways, options["rounds"])
    assert ("localsgd" in sys.modules) == (options["maker"] == "ours")
    if options["maker"] == "torchs":
        peers.leave_gloo()
    return _per_step(times) if peers.mpi_rank() == 0 else None


def _per_step(times: Times) -> Times:
    return {
        period: [value / max(int(period), FEWEST_STEPS) for value in seconds]
        for period, seconds in times.items()
    }


def measure(rounds: int) -> Report:
    question = " ".join((__doc__ or "").split())
    size = "8 linear layers of 1024, batch 32, SGD with momentum, 2 ranks, one thread each"
    report = Report("torch_step", f"{question} {size}; {JOBS} jobs each.")

    def job(maker: str, environment: Mapping[str, str] | None = None) -> Callable[[], Times]:
        options = {"rounds": rounds, "maker": maker}
        return lambda: run_here("benchmarks.torch_step", 2, options, environment=environment)

    ways = {
        OURS: job("ours"),
        TORCH: job("torchs"),
        TORCH_KEPT: job("torchs", peers.MEMORY_KEPT),
        BARE: job("bare"),
        BARE_KEPT: job("bare", peers.MEMORY_KEPT),
    }
    found = jobs_in_turn(ways, JOBS)
    same = []
    for period, least in LEAST.items():
        times = {way: found[way].get(str(period), found[way][str(LONGEST)]) for way in ways}
        spreads = report.add_times(f"period {period}", times)
        faster = spreads[TORCH].median / spreads[OURS].median
        setting = f"2 ranks, period {period}"
        report.goals.append(Goal("torch-step", setting, faster, least, True, "times faster"))
        same.append(f"{spreads[TORCH_KEPT].median / spreads[OURS].median:.2f}")
    report.notes.append(
        f"Where torch's step is given the same setting of malloc, ours is {', '.join(same)} times "
        f"faster at periods {', '.join(map(str, LEAST))}."
    )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=2)
