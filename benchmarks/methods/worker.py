"""One method on one task, from several seeds, on the workers of a job."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

import localsgd
from benchmarks.jobs import script
from benchmarks.methods import settings
from benchmarks.report import Report
from localsgd import Arena, ModelAverager

MOMENTS = 15
# For so many steps from the middle of training on, the distance between workers is measured.
APART_STEPS = 64


def worker(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curves of all seeds, on rank 0. Collective."""
    rows = {row.name: row for row in getattr(settings, options["task"])()}
    task = importlib.import_module(f"benchmarks.methods.{options['task']}")
    comm = localsgd.world()
    runs = [trained(task, rows[options["row"]], seed, comm) for seed in range(options["seeds"])]
    return {"runs": runs} if comm.rank == 0 else None


def trained(
    task: Any, row: settings.Row, seed: int, comm: localsgd.Communicator
) -> dict[str, list[float]]:
    """Trains one model; what was measured at regular moments. Collective.

    Returns:
        The measures of the task, ``rounds``, and of all workers together ``within`` and
        ``between``, bytes moved between ranks of a host and sent between hosts; ``apart``, once
        for each step, how far workers were from their mean.
    """
    params = Arena(task.start_values(seed), comm)
    training = row.make(row.inner.make(params, row.inner.peak), task.rate())
    averager = training.averager
    assert isinstance(averager, ModelAverager)
    curves: dict[str, list[float]] = {"apart": []}
    batches = task.gradients(params, seed, unlike=row.family == settings.UNLIKE)
    for step, _ in enumerate(itertools.islice(batches, task.STEPS), start=1):
        training.step()
        if 0 < step - task.STEPS // 2 <= APART_STEPS:
            curves["apart"].append(apart(averager, params))
        if step % (task.STEPS // MOMENTS) == 0:
            moved = averager.traffic
            mine = [moved.host_read + moved.host_written, moved.sent]
            within, between = np.sum(comm.collect(mine), axis=0).tolist()
            found = task.evaluated(averager.mean_of(params), comm)
            found |= {"rounds": averager.rounds, "within": within, "between": between}
            for name, value in found.items():
                curves.setdefault(name, []).append(value)
    return curves


def apart(averager: ModelAverager, params: Arena) -> float:
    """The workers' root mean square distance to their mean, in lengths of the mean. Collective."""
    mean = averager.mean_of(params)
    far = sum(float(np.square(params[name] - mean[name]).sum()) for name in mean)
    length = sum(float(np.square(values).sum()) for values in mean.values())
    return float(np.sqrt(np.mean(averager.comm.collect(far)) / length))


def measure(rounds: int) -> Report:
    """Nothing: ``python -m benchmarks.methods`` measures."""
    raise SystemExit("python -m benchmarks.methods starts this")


if __name__ == "__main__":
    script(measure, worker, rounds=1)
