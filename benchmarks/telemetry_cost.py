"""What part of a run is telemetry: events in the run times the cost of one, by the run's time?

A network with one hidden layer on 4 ranks, a round every 16 steps, a line of every step and
round. All is measured on the ranks that train, at the same time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import run_here, script
from benchmarks.measure import Times
from benchmarks.report import Goal, Report
from localsgd import Arena, LocalSGD, Telemetry, Traffic, optim
from localsgd.averagers import Round

# Inputs, hidden units, outputs, batch: that of examples/digits.py on 4 ranks, and a larger one.
NETWORKS = {"small": (64, 128, 10, 16), "large": (256, 1024, 256, 64)}
STEPS, PERIOD, CALLS = 320, 16, 2000
_MOST = 1.0


def worker(options: Mapping[str, Any]) -> Times:
    comm = localsgd.world()
    inputs, hidden, outputs, batch = options["network"]
    random = np.random.default_rng(comm.rank)
    values = {
        "first": random.normal(size=(inputs, hidden)).astype(np.float32),
        "second": random.normal(size=(hidden, outputs)).astype(np.float32),
    }
    params = Arena(values, comm)
    training = LocalSGD(optim.SGD(params, lr=1e-6), PERIOD)
    x = random.normal(size=(batch, inputs)).astype(np.float32)

    def run() -> None:
        for _ in range(STEPS):
            active = np.maximum(x @ params["first"], 0)
            error = active @ params["second"]
            params.grad["second"] += active.T @ error
            params.grad["first"] += x.T @ ((error @ params["second"].T) * (active > 0))
            training.step()

    found: Times = {"run": [], "line of a step": [], "line of a round": []}
    held = Round("round", PERIOD, comm, Traffic(sent=1000, seconds=0.1), True)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options["rounds"]):
            comm.barrier()
            seconds = _timed(run)
            with Telemetry(f"{folder}/{turn}", training, progress=False) as telemetry:

                def log(telemetry: Telemetry = telemetry) -> None:
                    for _ in range(CALLS):
                        telemetry.log(loss=0.5)

                def rounds(telemetry: Telemetry = telemetry) -> None:
                    for _ in range(CALLS):
                        telemetry.before([params], comm, "round", PERIOD)
                        telemetry.after([params], held)

                comm.barrier()
                of_step, of_round = _timed(log) / CALLS, _timed(rounds) / CALLS
            for name, measured in zip(found, (seconds, of_step, of_round), strict=True):
                found[name].append(measured)
    return found


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(rounds: int) -> Report:
    report = Report("telemetry_cost", " ".join((__doc__ or "").split()))
    for name, network in NETWORKS.items():
        options = {"rounds": rounds, "network": network}
        found = run_here("benchmarks.telemetry_cost", 4, options)
        spreads = report.add_times(f"{name} network, {STEPS} steps", found, baseline="run")
        step, held = spreads["line of a step"].median, spreads["line of a round"].median
        cost = STEPS // PERIOD * held
        for lines, seconds in (("rounds", cost), ("rounds and steps", cost + STEPS * step)):
            share = 100 * seconds / spreads["run"].median
            report.goals.append(
                Goal("telemetry-cost", f"{name} network, {lines}", share, _MOST, False, "%")
            )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=7)
