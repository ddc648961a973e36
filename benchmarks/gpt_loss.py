"""At equal samples: how much worse than synchronous training are DiLoCo and post-local SGD?

The GPT of ``examples/gpt.py`` as it stands: 4 workers, AdamW, Python's own source, held-out loss.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.jobs import ROOT, run_here, script
from benchmarks.report import Goal, Report

RANKS, LIMIT_S = 4, 1_800.0
MOST_PERCENT = {"diloco": 1.0, "post-local": 2.0}
METHODS = ("synchronous", *MOST_PERCENT)


def worker(options: Mapping[str, Any]) -> dict[str, Any] | None:
    import gpt
    import torch

    from localsgd.torch import world

    torch.set_num_threads(1)
    of = gpt.Settings(seed=options["seed"], moments=1)
    _, curve = gpt.train(options["method"], of, lambda _: None)
    if world().rank > 0:
        return None
    setting = f"{RANKS} ranks, {of.together} of {of.steps} steps together, then period {of.period}"
    return {"setting": setting, "bits": curve.bits[-1], "nbytes": curve.nbytes[-1]}


def measure(rounds: int) -> Report:
    question = " ".join((__doc__ or "").split())
    report = Report("gpt_loss", f"{question} Seeds: {rounds}; the mean of them.")
    report.columns = ["method", "bits per character", "against synchronous", "moved"]
    bits: dict[str, list[float]] = {}
    setting = ""
    for method in METHODS:
        found = [_trained(method, seed) for seed in range(rounds)]
        bits[method] = [one["bits"] for one in found]
        worse = [100 * (b / a - 1) for a, b in zip(bits["synchronous"], bits[method], strict=True)]
        percent, setting = statistics.mean(worse), found[0]["setting"]
        shown = "" if method == "synchronous" else f"{percent:+.2f} %"
        moved = f"{found[0]['nbytes'] / 1e6:,.0f} MB"
        report.rows.append([method, f"{statistics.mean(bits[method]):.3f}", shown, moved])
        if method in MOST_PERCENT:
            goal = f"{method}, {setting}"
            most = MOST_PERCENT[method]
            report.goals.append(Goal("gpt-loss", goal, percent, most, False, "% above synchronous"))
    report.notes.append(f"{setting[0].upper()}{setting[1:]}. A loss does not depend on the load.")
    return report


def _trained(method: str, seed: int) -> Any:
    options = {"method": method, "seed": seed}
    environment = {"PYTHONPATH": str(ROOT / "examples")}
    return run_here("benchmarks.gpt_loss", RANKS, options, environment=environment, limit_s=LIMIT_S)


if __name__ == "__main__":
    script(measure, worker, rounds=1)
