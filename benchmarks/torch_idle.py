"""What does a torch training step in which no average is due cost beyond the inner optimizer's?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.jobs import run_alone, script
from benchmarks.measure import Times, in_turn
from benchmarks.report import Goal, Report

CALLS, RARELY = 2_000, 10**9
MOST_US = 20.0
INNER, WRAPPED = "inner optimizer alone", "PostLocalSGDOptimizer"


def worker(options: Mapping[str, Any]) -> Times:
    import torch

    import localsgd.torch as lt

    torch.set_num_threads(1)

    def optimizer() -> torch.optim.Optimizer:
        params = [torch.nn.Parameter(torch.ones(100)) for _ in range(options["tensors"])]
        for param in params:
            param.grad = torch.ones_like(param)
        return torch.optim.SGD(params, lr=1e-3, momentum=0.9)

    # The first step, a turn to warm up, holds a round.
    wrapped = lt.PostLocalSGDOptimizer(optimizer(), lt.PeriodicModelAverager(RARELY))
    return in_turn({INNER: optimizer().step, WRAPPED: wrapped.step}, options["rounds"], calls=CALLS)


def measure(rounds: int) -> Report:
    report = Report("torch_idle", f"{__doc__} SGD with momentum; means of {CALLS:,} calls.")
    for tensors in (1, 16):
        times = run_alone("benchmarks.torch_idle", {"rounds": rounds, "tensors": tensors})
        spreads = report.add_times(f"{tensors} tensors", times, INNER)
        more = (spreads[WRAPPED].median - spreads[INNER].median) * 1e6
        setting = f"{tensors} tensors"
        report.goals.append(Goal("torch-idle", setting, more, MOST_US, False, "µs more"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=15)
