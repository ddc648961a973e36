"""How long is it from the end of a worker to the next round of those that are left?"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_losing, script
from benchmarks.report import Goal, Report
from localsgd import Arena, DiLoCo, Survival, optim
from localsgd.comm.compiled import settle

COUNT, DEADLINE_S, MOST_S = 1_000_000, 3.0, 1.0
LAYOUTS = ("4", "2+2")
KINDS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}


def worker(options: Mapping[str, Any]) -> None:
    """DiLoCo of which one worker is lost; rank 0 of those that are left notes its rounds."""
    comm = localsgd.world(deadline_s=DEADLINE_S)
    number, folder = comm.rank, Path(options["folder"])
    arena = Arena({"w": np.ones(COUNT, np.float32)}, comm)
    training = DiLoCo(optim.SGD(arena, lr=0.1), 2, comm=comm)
    Survival(training)
    for step in range(1, 13):
        arena.grad.flat[...] = arena.flat
        if step == 4:
            # Jobs have been running for a while when they lose somebody.
            settle()
        if (number, step) == (options["victim"], options["step"]):
            (folder / "struck").write_text(repr(time.time()))
            os.kill(os.getpid(), KINDS[options["kind"]])
        rounds = training.averager.rounds
        training.step()
        if comm.rank == 0 and training.averager.rounds > rounds:
            with (folder / "rounds").open("a") as out:
                print(time.time(), file=out)


def recovery_s(layout: str, kind: str, turn: int) -> float:
    """Of one job, without the deadline that a silent worker is given."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": folder, "kind": kind, "victim": turn % 4, "step": 5 + turn % 2}
        run_losing("benchmarks.recovery", layout, options)
        struck = float((Path(folder) / "struck").read_text())
        rounds = map(float, (Path(folder) / "rounds").read_text().split())
        waited = DEADLINE_S if kind == "SIGSTOP" else 0.0
        return next(when for when in rounds if when > struck) - struck - waited


def measure(rounds: int) -> Report:
    report = Report("recovery", f"{__doc__} DiLoCo of {COUNT / 1e6:g} M float32, 4 workers.")
    for layout in LAYOUTS:
        turns = {"SIGKILL": rounds, "SIGSTOP": max(1, rounds // 4)}
        times = {
            kind: [recovery_s(layout, kind, turn) for turn in range(count)]
            for kind, count in turns.items()
        }
        report.add_times(f"hosts {layout}", times, "SIGKILL")
        for kind, seconds in times.items():
            p99 = float(np.quantile(seconds, 0.99, method="higher"))
            beyond = "" if kind == "SIGKILL" else " beyond the deadline"
            setting = f"p99 of {len(seconds)}, {kind}, hosts {layout}"
            report.goals.append(Goal("recovery", setting, p99, MOST_S, False, f"s{beyond}"))
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=20, compile_first=False)
