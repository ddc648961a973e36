"""What does a local step cost against torch.optim, on one thread?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks import peers
from benchmarks.jobs import run_alone, script
from benchmarks.measure import Times, in_turn
from benchmarks.report import OURS, Goal, Report

COUNT, PIECES = 25_600_000, 160
DEFAULT, FOREACH, FUSED = "torch default", "torch foreach", "torch fused"
_OPTIONS: dict[str, dict[str, float]] = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.01},
}


def worker(options: Mapping[str, Any]) -> Times:
    import torch

    torch.set_num_threads(1)
    name = options["optimizer"]
    arena = localsgd.Arena(peers.tensors(COUNT, PIECES))
    ours = getattr(localsgd.optim, name)(arena, **_OPTIONS[name])
    ways: dict[str, Callable[[], object]] = {OURS: ours.step}
    for way, flags in ((DEFAULT, {}), (FOREACH, {"foreach": True}), (FUSED, {"fused": True})):
        params = [torch.nn.Parameter(torch.ones(COUNT // PIECES)) for _ in range(PIECES)]
        for param in params:
            param.grad = torch.full_like(param, 0.1)
        ways[way] = getattr(torch.optim, name)(params, **_OPTIONS[name], **flags).step

    def fill_gradients() -> None:
        arena.grad.flat[...] = np.float32(0.1)

    return in_turn(ways, options["rounds"], before=fill_gradients)


def measure(rounds: int) -> Report:
    report = Report("inner", f"{__doc__} {COUNT / 1e6} M float32 in {PIECES} tensors.")
    if not peers.has_torch():
        report.goals.append(
            Goal("inner", "", None, 1, False, "times torch.optim's", "torch is not installed")
        )
        return report
    for name in _OPTIONS:
        times = run_alone("benchmarks.inner", {"rounds": rounds, "optimizer": name})
        spreads = report.add_times(name, times)
        ours = spreads[OURS].median
        for peer in (DEFAULT, FOREACH):
            ratio = ours / spreads[peer].median
            report.goals.append(Goal("inner", name, ratio, 1, False, f"times {peer}"))
        if name == "SGD":
            ratio = ours / spreads[FUSED].median
            report.goals.append(Goal("inner", name, ratio, 1.5, False, f"times {FUSED}"))
    report.notes.append("Ours also sets the gradients to zero, within its time.")
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=11)
