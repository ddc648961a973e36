"""How long is it from the loss of a worker to the first round of the one that takes its place?"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_losing, script
from benchmarks.report import Goal, Report
from localsgd import Arena, DiLoCo, Survival, optim

COUNT, MOST_S, WAIT_S = 1_000_000, 3.0, 60.0
LAYOUTS = ("4", "2+2")


def worker(options: Mapping[str, Any]) -> None:
    """DiLoCo of which one worker is lost; it goes on until another has had a round in its place."""
    comm = localsgd.world(deadline_s=30.0)
    number, folder = -1 if comm.joining else comm.rank, Path(options["folder"])
    arena = Arena({"w": np.ones(COUNT, np.float32)}, comm)
    training = DiLoCo(optim.SGD(arena, lr=0.1), 2, comm=comm)
    survival = Survival(training)
    left, slowest, until = 3, 0.0, time.monotonic() + WAIT_S
    while left:
        is_here = comm.size == 4 and survival.lost > 0
        left -= is_here
        arena.grad.flat[...] = arena.flat
        if (number, training.averager.step) == (options["victim"], options["step"]):
            (folder / "struck").write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        begin, lost = time.perf_counter(), survival.lost
        rounds = training.averager.rounds
        training.step()
        if training.averager.rounds > rounds and survival.joined:
            (folder / "joined").write_text(repr(time.time()))
        if survival.lost and survival.lost == lost and not is_here:
            slowest = max(slowest, time.perf_counter() - begin)
        if time.monotonic() > until:
            raise TimeoutError("nobody joins")
    if comm.rank == 0:
        (folder / "slowest").write_text(repr(slowest))


def rejoin_s(layout: str, turn: int) -> tuple[float, float]:
    """From the loss to the first round of the new worker, and the slowest step meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": folder, "victim": turn % 4, "step": 5 + turn % 2}
        run_losing("benchmarks.rejoin", layout, options, "--respawn")
        times = [float((Path(folder) / name).read_text()) for name in ("struck", "joined")]
        return times[1] - times[0], float((Path(folder) / "slowest").read_text())


def measure(rounds: int) -> Report:
    report = Report("rejoin", f"{__doc__} DiLoCo of {COUNT / 1e6:g} M float32, 4 workers.")
    for layout in LAYOUTS:
        found = [rejoin_s(layout, turn) for turn in range(rounds)]
        times = {
            "loss to first round": [joined for joined, _ in found],
            "slowest step of the others meanwhile": [slowest for _, slowest in found],
        }
        report.add_times(f"hosts {layout}", times, "loss to first round")
        middle = median(joined for joined, _ in found)
        setting = f"median of {rounds}, hosts {layout}"
        report.goals.append(Goal("rejoin", setting, middle, MOST_S, False, "s"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=10, compile_first=False)
