"""How long is it from the start of a worker that takes another's place to its first round?

And from the loss of the other, which the rest must notice and have recovered from before.
"""

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
from localsgd.comm.compiled import settle

COUNT, MOST_S, WAIT_S = 1_000_000, 3.0, 60.0
LAYOUTS = ("4", "2+2")
FIRST, SINCE_LOSS = "start to first round", "loss to first round"
MEANWHILE = "slowest step of the others meanwhile"


def started_at() -> float:
    """When this process began, in seconds as ``time.time()`` counts them."""
    # The 22nd entry; the second, in brackets, may have spaces.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def worker(options: Mapping[str, Any]) -> None:
    """DiLoCo of which one worker is lost; it goes on until another has had a round in its place."""
    comm = localsgd.world(deadline_s=30.0)
    number, folder = -1 if comm.joining else comm.rank, Path(options["folder"])
    if comm.joining:
        (folder / "started").write_text(repr(started_at()))
    arena = Arena({"w": np.ones(COUNT, np.float32)}, comm)
    training = DiLoCo(optim.SGD(arena, lr=0.1), 2, comm=comm)
    survival = Survival(training)
    left, slowest, until = 3, 0.0, time.monotonic() + WAIT_S
    while left:
        is_here = comm.size == 4 and survival.lost > 0
        left -= is_here
        arena.grad.flat[...] = arena.flat
        if training.averager.step == 4 and number >= 0:
            # Jobs have been running for a while when they lose somebody.
            settle()
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


def rejoin_s(layout: str, turn: int) -> dict[str, float]:
    """Seconds, of one job."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": folder, "victim": turn % 4, "step": 5 + turn % 2}
        run_losing("benchmarks.rejoin", layout, options, "--respawn")
        names = ("struck", "started", "joined", "slowest")
        noted = {name: float((Path(folder) / name).read_text()) for name in names}
    return {
        FIRST: noted["joined"] - noted["started"],
        SINCE_LOSS: noted["joined"] - noted["struck"],
        MEANWHILE: noted["slowest"],
    }


def measure(rounds: int) -> Report:
    question = (__doc__ or "").splitlines()[0]
    report = Report("rejoin", f"{question} DiLoCo of {COUNT / 1e6:g} M float32, 4 workers.")
    for layout in LAYOUTS:
        found = [rejoin_s(layout, turn) for turn in range(rounds)]
        times = {name: [one[name] for one in found] for name in found[0]}
        report.add_times(f"hosts {layout}", times, FIRST)
        setting = f"median of {rounds}, hosts {layout}"
        report.goals.append(Goal("rejoin", setting, median(times[FIRST]), MOST_S, False, "s"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=10, compile_first=False)
