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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from comparison import Measure, compare, draw, launch, periods, show
from numpy.typing import NDArray
from rich.console import Console
from sklearn.datasets import load_digits

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    ModelAverager,
    PostLocalSGDOptimizer,
    optim,
)

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


def forward(params: Arena | dict[str, Floats], images: Floats) -> tuple[Floats, Floats]:
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


def accuracy(params: Arena | dict[str, Floats], digits: Digits) -> float:
    """How many digits in a hundred are read right."""
    _, probabilities = forward(params, digits.images)
    return 100 * float((probabilities.argmax(axis=1) == digits.labels).mean())


def batches(digits: Digits, comm: Communicator, seed: int, epoch: int) -> Iterator[Digits]:
    """This worker's share of every global batch of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(digits.labels))
    for start in range(0, len(order) - GLOBAL_BATCH + 1, GLOBAL_BATCH):
        yield digits.take(order[start : start + GLOBAL_BATCH][comm.rank :: comm.size])


def ways(comm: Communicator) -> dict[str, ModelAverager]:
    """The averagers to compare, by name."""
    found = periods(comm, (4, 16, 64))
    if comm.size % 2 == 0 and comm.size > 2:
        found["pairs 4, all 16"] = HierarchicalModelAverager({4: 2, 16: comm.size}, 0, comm)
    return found


def train(
    averager: ModelAverager, seed: int, advance: Callable[[], None], *, epochs: int
) -> list[float]:
    """Trains one network from the start; the held-out accuracy after every epoch."""
    learn, held_out = read_digits()
    params = Arena(start_values(seed), averager.comm)
    training = PostLocalSGDOptimizer(optim.SGD(params, lr=0.05, momentum=0.9), averager)
    accuracies = []
    for epoch in range(epochs):
        for batch in batches(learn, averager.comm, seed, epoch):
            add_gradient(params, batch)
            training.step()
        accuracies.append(accuracy(averager.mean_of(params), held_out))
        advance()
    return accuracies


def run(comm: Communicator, arguments: argparse.Namespace) -> None:
    epochs: int = arguments.epochs
    outcomes = compare(
        comm,
        ways,
        lambda averager, seed, advance: train(averager, seed, advance, epochs=epochs),
        seeds=arguments.seeds,
        moments=epochs,
        parameter_bytes=sum(array.nbytes for array in start_values(0).values()),
    )
    if comm.rank == 0:
        console, measure = Console(), Measure("held-out accuracy", "%", 2)
        show(console, comm, "handwritten digits", measure, outcomes)
        draw(
            arguments.picture,
            f"Local SGD on handwritten digits, {comm.size} workers",
            measure,
            outcomes,
            moments=range(1, epochs + 1),
            moment_label="epochs",
            curve_limits=(85, 100),
        )
        console.print(f"picture: {arguments.picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Local SGD on handwritten digits.")
    parser.add_argument("--threads", type=int, help="workers as threads of this process")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=Path("out/digits.png"))
    arguments = parser.parse_args()
    launch(run, arguments)


if __name__ == "__main__":
    main()
