"""Handwritten digits with local SGD: what talking less saves, and what it costs.

A small network learns scikit-learn's 1,797 handwritten digits on all workers at once, with the
workers averaging after every step (synchronous SGD), after every 4, 16 and 64 steps, and by levels
(pairs every 4 steps, everybody every 16). All runs see the same samples.

    python examples/digits.py                      alone
    python examples/digits.py --threads 4          four workers in one process
    localsgd run -n 4 examples/digits.py           four MPI processes
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits

import localsgd
from localsgd import Arena, Communicator, ModelAverager, PostLocalSGDOptimizer, every, optim
from localsgd.averagers import HierarchicalModelAverager

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

GLOBAL_BATCH = 64
HIDDEN = 128


@dataclass(frozen=True)
class Digits:
    """Images, shape ``(n, 64)`` in [0, 1], and the digits that they show, shape ``(n,)``."""

    images: Floats
    labels: Labels

    def take(self, indices: Labels) -> Digits:
        return Digits(self.images[indices], self.labels[indices])


@dataclass
class Outcome:
    """What one run came to.

    Attributes:
        accuracy: held-out, of the mean of all workers' parameters, after every epoch.
        rounds: how often this worker averaged.
        nbytes: what all workers together moved for it, between ranks of a host or hosts.
        waited_s: seconds that the average worker waited for others.
    """

    accuracy: list[float]
    rounds: int
    nbytes: int
    waited_s: float


def read_digits() -> tuple[Digits, Digits]:
    """Four fifths of the digits to learn from, and one fifth held out."""
    bunch = load_digits()
    images, labels = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    cut = len(labels) * 4 // 5
    everything = Digits(images, labels)
    return everything.take(order[:cut]), everything.take(order[cut:])


def start_values(seed: int) -> dict[str, Floats]:
    """A network with one hidden layer."""
    random = np.random.default_rng(seed)
    return {
        "w1": (random.normal(size=(64, HIDDEN)) * np.sqrt(2 / 64)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": (random.normal(size=(HIDDEN, 10)) * np.sqrt(2 / HIDDEN)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def forward(params: localsgd.Arena | dict[str, Floats], images: Floats) -> tuple[Floats, Floats]:
    """Hidden activations and the probability of each digit."""
    hidden = np.maximum(images @ params["w1"] + params["b1"], 0)
    scores = hidden @ params["w2"] + params["b2"]
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return hidden, scores


def add_gradient(params: Arena, batch: Digits) -> None:
    """Adds the gradient of the mean cross-entropy of a batch to ``params.grad``."""
    hidden, delta = forward(params, batch.images)
    delta[np.arange(len(batch.labels)), batch.labels] -= 1
    delta /= np.float32(len(batch.labels))
    back = (delta @ params["w2"].T) * (hidden > 0)
    params.grad["w2"] += hidden.T @ delta
    params.grad["b2"] += delta.sum(axis=0)
    params.grad["w1"] += batch.images.T @ back
    params.grad["b1"] += back.sum(axis=0)


def accuracy(params: dict[str, Floats], digits: Digits) -> float:
    _, probabilities = forward(params, digits.images)
    return float((probabilities.argmax(axis=1) == digits.labels).mean())


def batches(digits: Digits, comm: Communicator, seed: int, epoch: int) -> Iterator[Digits]:
    """This worker's share of every global batch of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(digits.labels))
    for start in range(0, len(order) - GLOBAL_BATCH + 1, GLOBAL_BATCH):
        yield digits.take(order[start : start + GLOBAL_BATCH][comm.rank :: comm.size])


def ways(comm: Communicator) -> dict[str, ModelAverager]:
    """The averagers to compare, by name."""
    found = {"synchronous": ModelAverager(every(1), comm)}
    for period in (4, 16, 64):
        found[f"period {period}"] = ModelAverager(every(period), comm)
    if comm.size % 2 == 0 and comm.size > 2:
        found["pairs 4, all 16"] = HierarchicalModelAverager({4: 2, 16: comm.size}, 0, comm)
    return found


def train(
    comm: Communicator, averager: ModelAverager, seed: int, epochs: int, progress: Progress | None
) -> Outcome:
    """Trains one network from the start."""
    learn, held_out = read_digits()
    params = Arena(start_values(seed), comm)
    training = PostLocalSGDOptimizer(optim.SGD(params, lr=0.05, momentum=0.9), averager)
    accuracies = []
    for epoch in range(epochs):
        for batch in batches(learn, comm, seed, epoch):
            add_gradient(params, batch)
            training.step()
        accuracies.append(accuracy(averager.mean_of(params), held_out))
        if progress is not None:
            progress.advance(progress.task_ids[0])
    moved = averager.traffic
    mine = [moved.host_read + moved.host_written + moved.sent + moved.received, moved.waited_s]
    nbytes, waited_s = np.sum(comm.collect(mine), axis=0)
    outcome = Outcome(accuracies, averager.rounds, int(nbytes), waited_s / comm.size)
    if not isinstance(averager, HierarchicalModelAverager):
        check_bytes(outcome, comm, params.flat.nbytes)
    return outcome


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


def compare(comm: Communicator, epochs: int, seeds: int) -> dict[str, list[Outcome]]:
    """All ways and seeds; rank 0 shows how far it is."""
    names = list(ways(comm))
    progress = Progress() if comm.rank == 0 else None
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    with progress or nullcontext():
        if progress is not None:
            progress.add_task("training", total=len(names) * seeds * epochs)
        for seed in range(seeds):
            for name, averager in ways(comm).items():
                outcomes[name].append(train(comm, averager, seed, epochs, progress))
    return outcomes


def show(console: Console, comm: Communicator, outcomes: dict[str, list[Outcome]]) -> None:
    """A row for every way: medians over seeds, and the spread of the accuracy."""
    title = f"held-out accuracy on digits, {comm.size} workers on hosts {comm.topology}"
    table = Table(title=title, box=box.SIMPLE)
    for heading in ("averaging", "accuracy", "over seeds", "rounds", "moved", "waited"):
        table.add_column(heading, justify="left" if heading == "averaging" else "right")
    for name, runs in outcomes.items():
        final = [run.accuracy[-1] for run in runs]
        table.add_row(
            name,
            f"{np.median(final):.2%}",
            f"{100 * min(final):.1f} to {100 * max(final):.1f}",
            f"{runs[0].rounds:,}",
            f"{runs[0].nbytes / 1e6:,.1f} MB",
            f"{np.median([run.waited_s for run in runs]):.2f} s",
        )
    console.print(table)
    if comm.size > 1:
        console.print("The bytes moved equal the closed form.")


def draw(path: Path, comm: Communicator, outcomes: dict[str, list[Outcome]]) -> None:
    """Held-out accuracy over epochs, and at the end against the bytes moved."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, costs) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, runs in outcomes.items():
        rows = 100 * np.array([run.accuracy for run in runs])
        epochs = np.arange(1, rows.shape[1] + 1)
        (line,) = curves.plot(epochs, np.median(rows, axis=0), label=name)
        curves.fill_between(
            epochs, rows.min(axis=0), rows.max(axis=0), color=line.get_color(), alpha=0.15
        )
        final = rows[:, -1]
        costs.errorbar(
            runs[0].nbytes / 1e6,
            np.median(final),
            [[np.median(final) - final.min()], [final.max() - np.median(final)]],
            marker="o",
            capsize=4,
            label=name,
        )
    curves.set(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(85, 100))
    costs.set(xlabel="moved between workers (MB)", ylabel="accuracy at the end (%)", ylim=(95, 100))
    costs.set_xscale("symlog", linthresh=1)
    curves.legend(loc="lower right")
    figure.suptitle(f"Local SGD on handwritten digits, {comm.size} workers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(comm: Communicator, arguments: argparse.Namespace) -> None:
    outcomes = compare(comm, arguments.epochs, arguments.seeds)
    if comm.rank == 0:
        console = Console()
        show(console, comm, outcomes)
        draw(arguments.picture, comm, outcomes)
        console.print(f"picture: {arguments.picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Local SGD on handwritten digits.")
    parser.add_argument("--threads", type=int, help="workers as threads of this process")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=Path("out/digits.png"))
    arguments = parser.parse_args()
    if arguments.threads is None:
        run(localsgd.world(), arguments)
    else:
        localsgd.run_threads(arguments.threads, run, arguments)


if __name__ == "__main__":
    main()
