"""How much training time does a checkpoint of 100 MB cost that is written in the background?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.jobs import run_alone, script
from benchmarks.measure import Times
from benchmarks.report import Goal, Report
from localsgd import Checkpoints, every, solo

COUNT, MOST = 25_000_000, 0.05
BACKGROUND, FOREGROUND = "lost to one in the background", "one in the foreground"
STEPS = 60


def worker(options: Mapping[str, Any]) -> Times:
    values, matrix = np.ones(COUNT, np.float32), np.ones((700, 700), np.float32)

    def train() -> None:
        """About as long as a checkpoint takes to be written, twice."""
        for _ in range(STEPS):
            matrix @ matrix

    def timed(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    found: Times = {BACKGROUND: [], FOREGROUND: []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saves = Checkpoints(folder, {"values": {"x": values}}, solo(), when=every(1), keep=1)
        for turn in range(options["rounds"] + 1):
            alone = timed(train)
            behind = timed(lambda: saves.save(1)) + timed(train)
            saves.wait()
            in_front = timed(lambda: saves.save(1)) + timed(saves.wait)
            # The first is to warm up.
            if turn:
                found[BACKGROUND].append(max(behind - alone, 0.0))
                found[FOREGROUND].append(in_front)
        saves.close()
    return found


def measure(rounds: int) -> Report:
    report = Report("checkpoint_stall", f"{__doc__} One rank, a disk of this machine.")
    times = run_alone("benchmarks.checkpoint_stall", {"rounds": rounds})
    spreads = report.add_times("1 rank", times, FOREGROUND)
    share = spreads[BACKGROUND].median / spreads[FOREGROUND].median
    report.goals.append(
        Goal("checkpoint-stall", "100 MB", share, MOST, False, "of one in the foreground")
    )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=9)
