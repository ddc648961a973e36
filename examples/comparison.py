"""What the examples share: one model trained in several ways, as a table and as a picture.

A way is an averager. All ways see the same samples in the same order, start from the same values,
and differ in when the workers average and with whom, so in the bytes that they move.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from threadpoolctl import threadpool_limits

from localsgd import (
    Communicator,
    HierarchicalModelAverager,
    ModelAverager,
    every,
    run_threads,
    world,
)

# train(averager, seed, advance) trains one model from the start and returns the measure at regular
# moments, after each of which it calls advance(). Collective.
Train: TypeAlias = Callable[[ModelAverager, int, Callable[[], None]], "list[float]"]


@dataclass
class Outcome:
    """What one run came to.

    Attributes:
        curve: the measure, of the mean of all workers' parameters, at regular moments.
        rounds: how often this worker averaged.
        nbytes: what all workers together moved for it, between ranks of a host or hosts.
        waited_s: seconds that the average worker waited for others.
        seconds: what the run took.
    """

    curve: list[float]
    rounds: int
    nbytes: int
    waited_s: float
    seconds: float


Outcomes: TypeAlias = "dict[str, list[Outcome]]"


@dataclass(frozen=True)
class Measure:
    """How well a model does, in words.

    Attributes:
        name: what is measured, as in ``accuracy``.
        unit: of the numbers, as in ``%``.
        digits: how many decimal places are shown.
    """

    name: str
    unit: str
    digits: int

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


def launch(
    run: Callable[[Communicator, argparse.Namespace], None], arguments: argparse.Namespace
) -> None:
    """Runs an example on the workers of its job, or on ``arguments.threads`` of this process.

    The workers are the parallelism: a BLAS with threads of its own for each of them is many times
    slower on small matrices. ``localsgd run`` sees to that, too.
    """
    if arguments.threads is None:
        run(world(), arguments)
    else:
        with threadpool_limits(1):
            run_threads(arguments.threads, run, arguments)


def periods(comm: Communicator, local: Sequence[int]) -> dict[str, ModelAverager]:
    """Synchronous SGD, and local SGD with these periods."""
    found = {"synchronous": ModelAverager(every(1), comm)}
    for period in local:
        found[f"period {period}"] = ModelAverager(every(period), comm)
    return found


def compare(
    comm: Communicator,
    ways: Callable[[Communicator], dict[str, ModelAverager]],
    train: Train,
    *,
    seeds: int,
    moments: int,
    parameter_bytes: int,
) -> Outcomes:
    """All ways and seeds; rank 0 shows how far it is. Collective.

    Args:
        ways: new averagers for one seed, by name.
        train: trains one model.
        seeds: how many times everything is trained.
        moments: how often ``train`` calls ``advance``.
        parameter_bytes: the size of the model, for the check of the bytes counted.
    """
    names = list(ways(comm))
    progress = Progress() if comm.rank == 0 else None
    outcomes: Outcomes = {name: [] for name in names}
    with progress or nullcontext():
        advance: Callable[[], None] = nothing
        if progress is not None:
            task = progress.add_task("training", total=len(names) * seeds * moments)
            advance = lambda: progress.advance(task)  # noqa: E731
        for seed in range(seeds):
            for name, averager in ways(comm).items():
                begin = time.perf_counter()
                curve = train(averager, seed, advance)
                outcomes[name].append(_outcome(comm, averager, curve, begin))
                if not isinstance(averager, HierarchicalModelAverager):
                    check_bytes(outcomes[name][-1], comm, parameter_bytes)
    return outcomes


def nothing() -> None:
    """What ranks without a progress bar do with it."""


def _outcome(
    comm: Communicator, averager: ModelAverager, curve: list[float], begin: float
) -> Outcome:
    seconds = time.perf_counter() - begin
    moved = averager.traffic
    mine = [moved.host_read + moved.host_written + moved.sent + moved.received, moved.waited_s]
    nbytes, waited_s = np.sum(comm.collect(mine), axis=0)
    return Outcome(curve, averager.rounds, int(nbytes), waited_s / comm.size, seconds)


def check_bytes(outcome: Outcome, comm: Communicator, nbytes: int) -> None:
    """Compares the bytes counted with the closed form.

    A round of ``nbytes`` on M hosts: each host's L ranks read and write L - 1 times the buffer in
    each other's memory, and each host sends and receives 2 (M - 1) / M times the buffer, to the
    element that does not divide.
    """
    hosts = comm.topology.hosts
    within = sum(2 * (len(ranks) - 1) * nbytes for ranks in hosts)
    between = 4 * (len(hosts) - 1) * nbytes
    if outcome.nbytes != outcome.rounds * (within + between):
        raise AssertionError(f"{outcome.nbytes} bytes in {outcome.rounds} rounds")


def show(
    console: Console, comm: Communicator, title: str, measure: Measure, outcomes: Outcomes
) -> None:
    """A row for every way: medians over seeds, and the spread of the measure."""
    title = f"{title}, {comm.size} workers on hosts {comm.topology}"
    several = len(next(iter(outcomes.values()))) > 1
    table = Table(title=title, box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    headings = ["averaging", f"{measure.name}, {measure.unit}"]
    headings += ["over seeds"] if several else []
    for heading in (*headings, "rounds", "moved", "waited", "took"):
        table.add_column(heading, justify="left" if heading == "averaging" else "right")
    for name, runs in outcomes.items():
        final = [run.curve[-1] for run in runs]
        cells = [name, measure.text(float(np.median(final)))]
        cells += [f"{measure.text(min(final))}..{measure.text(max(final))}"] if several else []
        table.add_row(
            *cells,
            f"{runs[0].rounds:,}",
            f"{runs[0].nbytes / 1e6:,.1f} MB",
            f"{np.median([run.waited_s for run in runs]):.2f} s",
            f"{np.median([run.seconds for run in runs]):.1f} s",
        )
    console.print(table)
    if comm.size > 1:
        console.print("The bytes moved equal the closed form.")


def draw(
    path: Path,
    title: str,
    measure: Measure,
    outcomes: Outcomes,
    *,
    moments: Sequence[float],
    moment_label: str,
    curve_limits: tuple[float, float],
) -> None:
    """The measure as training goes on, and at the end against the bytes moved."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, costs) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    for name, runs in outcomes.items():
        rows = np.array([run.curve for run in runs])
        middle, final = np.median(rows, axis=0), rows[:, -1]
        (line,) = curves.plot(moments, middle, label=name)
        curves.fill_between(
            moments, rows.min(axis=0), rows.max(axis=0), color=line.get_color(), alpha=0.15
        )
        megabytes = runs[0].nbytes / 1e6
        spread = [[middle[-1] - final.min()], [final.max() - middle[-1]]]
        costs.errorbar(megabytes, middle[-1], spread, marker="o", capsize=4 if len(runs) > 1 else 0)
        costs.annotate(
            name,
            (megabytes, middle[-1]),
            # Beside the bar of the spread, if there is one.
            (6, 6) if len(runs) > 1 else (0, 9),
            textcoords="offset points",
            ha="left" if len(runs) > 1 else "center",
            color=line.get_color(),
        )
    label = f"{measure.name}, {measure.unit}"
    curves.set(xlabel=moment_label, ylabel=label, ylim=curve_limits)
    costs.set(xlabel="moved between workers, MB", ylabel=f"{label}, at the end")
    costs.set_xscale("symlog", linthresh=1)
    costs.margins(x=0.22, y=0.25)
    curves.legend(loc="best", frameon=False)
    for axes in (curves, costs):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
