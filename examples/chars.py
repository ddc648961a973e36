"""A language model of Python's source, character by character, with local SGD.

A network reads 16 characters and predicts the next: an embedding, one hidden layer, gradients by
hand. It learns from modules of Python's own standard library, on all workers at once, which average
after every step (synchronous SGD) or after every 16 or 64. All runs see the same samples.

    python examples/chars.py                       alone
    python examples/chars.py --threads 4           four workers in one process
    localsgd run -n 4 examples/chars.py            four MPI processes

The last line says what period 16 costs and saves. Loss is in bits per character, held out.

All ways have one learning rate. Synchronous SGD ends alike for peaks of 0.3, 0.4 and 0.6
(``--learning-rate``); period 16 is best at 0.3, and 0.05 worse at 0.4: a worker alone bears less.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from comparison import Measure, Outcomes, compare, draw, launch, periods, show
from numpy.typing import NDArray
from rich.console import Console

from localsgd import (
    Arena,
    Communicator,
    ModelAverager,
    PostLocalSGDOptimizer,
    RandomStreams,
    ShardSampler,
    lr,
    optim,
    solo,
)

Array: TypeAlias = NDArray[Any]
Bytes: TypeAlias = NDArray[np.uint8]
Params: TypeAlias = "Mapping[str, Array]"

LIBRARY = Path(sysconfig.get_path("stdlib"))
# Modules that every Python from 3.10 on has as one file each.
LEARNT = """
    _pydecimal _pyio argparse ast base64 bdb calendar cmd codecs compileall configparser contextlib
    copy csv dataclasses difflib dis doctest enum filecmp fractions ftplib functools gettext hashlib
    imaplib inspect ipaddress locale mailbox mimetypes optparse os pdb pickle pickletools pkgutil
    platform plistlib pprint profile pstats random sched selectors shlex shutil smtplib socket
    socketserver ssl statistics string subprocess symtable tarfile tempfile threading timeit
    tokenize trace traceback turtle types typing uuid warnings wave weakref webbrowser zipimport
"""
HELD_OUT = "bisect fnmatch glob heapq netrc numbers queue reprlib shelve textwrap"

# Line feed and printable ASCII; the last symbol stands for everything else.
ALPHABET = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"
CONTEXT = 16
EMBEDDING = 16
HIDDEN = 256
GLOBAL_BATCH = 256
LEARNING_RATE = 0.3
HELD_OUT_SAMPLES = 51_200
EVALUATIONS = 16


def read_modules(names: str, folder: Path = LIBRARY) -> Bytes:
    """The source of these modules, end to end: a number of ``ALPHABET`` for every character."""
    text = "".join((folder / f"{name}.py").read_text("utf-8") for name in names.split())
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    number = np.full(128, len(ALPHABET) - 1, np.uint8)
    number[[ord(letter) for letter in ALPHABET[:-1]]] = range(len(ALPHABET) - 1)
    return number[np.minimum(codes, 127)]


def windows_of(text: Bytes) -> Bytes:
    """Every stretch of a context and the character after it, shape ``(n, CONTEXT + 1)``; a view."""
    return np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)


def start_values(seed: int, dtype: type[np.floating[Any]] = np.float32) -> dict[str, Array]:
    """A network with one hidden layer."""
    random, symbols = np.random.default_rng(seed), len(ALPHABET)
    inputs = CONTEXT * EMBEDDING
    values = {
        "embedding": random.normal(size=(symbols, EMBEDDING)),
        "w1": random.normal(size=(inputs, HIDDEN)) * np.sqrt(2 / inputs),
        "b1": np.zeros(HIDDEN),
        "w2": random.normal(size=(HIDDEN, symbols)) / np.sqrt(HIDDEN),
        "b2": np.zeros(symbols),
    }
    return {name: array.astype(dtype) for name, array in values.items()}


def forward(params: Params, contexts: Bytes) -> tuple[Array, Array, Array]:
    """Inputs and hidden activations, and the probability of each next character.

    inputs = embedding[contexts]
    hidden = max(0, inputs · w1 + b1)
    probabilities = softmax(hidden · w2 + b2)
    """
    inputs = params["embedding"][contexts].reshape(len(contexts), -1)
    hidden = np.maximum(inputs @ params["w1"] + params["b1"], 0)
    scores = hidden @ params["w2"] + params["b2"]
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return inputs, hidden, scores


def add_gradient(params: Params, grad: Params, windows: Bytes) -> None:
    """Adds the gradient of the mean cross-entropy (in nats) of a batch to ``grad``."""
    contexts, targets = windows[:, :-1], windows[:, -1]
    inputs, hidden, delta = forward(params, contexts)
    delta[np.arange(len(targets)), targets] -= 1
    delta /= delta.dtype.type(len(targets))
    back = (delta @ params["w2"].T) * (hidden > 0)
    to_inputs = (back @ params["w1"].T).reshape(-1, EMBEDDING)
    of_symbol = np.eye(len(ALPHABET), dtype=delta.dtype)[contexts.reshape(-1)]
    grad["w2"][...] += hidden.T @ delta
    grad["b2"][...] += delta.sum(axis=0)
    grad["w1"][...] += inputs.T @ back
    grad["b1"][...] += back.sum(axis=0)
    grad["embedding"][...] += of_symbol.T @ to_inputs


def bits(params: Params, windows: Bytes) -> float:
    """What it takes to tell the last characters of these windows, all together."""
    *_, probabilities = forward(params, windows[:, :-1])
    likely = probabilities[np.arange(len(windows)), windows[:, -1]]
    return -float(np.log2(likely, dtype=np.float64).sum())


def bits_per_character(params: Params, windows: Bytes, comm: Communicator) -> float:
    """The held-out loss; every worker computes its share. Collective."""
    return sum(comm.collect(bits(params, windows[comm.rank :: comm.size]))) / len(windows)


def learning_rate(steps: int) -> lr.Rate:
    """Rises for a twentieth of training, then falls to zero along a cosine."""
    rise = max(1, steps // 20)
    return lr.chain([lr.linear(rise, 1 / rise), lr.cosine(steps - rise)], starts=[rise])


def train(
    averager: ModelAverager,
    seed: int,
    advance: Callable[[], None],
    *,
    steps: int,
    peak_rate: float = LEARNING_RATE,
    held_out_samples: int = HELD_OUT_SAMPLES,
) -> tuple[list[float], dict[str, Array]]:
    """Trains one network; the held-out loss at regular moments, and the mean parameters."""
    comm = averager.comm
    learn = windows_of(read_modules(LEARNT))
    held_out = windows_of(read_modules(HELD_OUT))
    held_out = held_out[:: max(1, len(held_out) // held_out_samples)][:held_out_samples]
    params = Arena(start_values(seed), comm)
    inner = optim.SGD(params, lr=peak_rate, momentum=0.9, nesterov=True)
    training = PostLocalSGDOptimizer(inner, averager, rate=learning_rate(steps))
    sampler = ShardSampler(len(learn), GLOBAL_BATCH // comm.size, seed=seed, comm=comm)
    losses: list[float] = []
    while averager.step < steps:
        for indices in sampler:
            add_gradient(params, params.grad, learn[indices])
            training.step()
            if averager.step % (steps // EVALUATIONS) == 0:
                mean = averager.mean_of(params)
                losses.append(bits_per_character(mean, held_out, comm))
                advance()
            if averager.step == steps:
                break
    return losses, averager.mean_of(params)


def written(params: Params, count: int, seed: int) -> str:
    """Text that the model writes, from a start."""
    random = RandomStreams(seed, solo()).own
    text = "\n\nclass Communicator:\n    def "
    for _ in range(count):
        context = np.array([[ALPHABET.index(letter) for letter in text[-CONTEXT:]]], np.uint8)
        *_, probabilities = forward(params, context)
        sharper = probabilities[0].astype(np.float64) ** 1.5
        text += ALPHABET[random.choice(len(ALPHABET), p=sharper / sharper.sum())]
    return text.strip()


def verdict(outcomes: Outcomes) -> str:
    """Whether period 16 does what it should, in a line."""
    synchronous, local = outcomes["synchronous"], outcomes["period 16"]
    lost = np.median([run.curve[-1] for run in local]) - np.median(
        [run.curve[-1] for run in synchronous]
    )
    times = synchronous[0].nbytes / local[0].nbytes
    reached = "reached" if lost <= 0.03 and times >= 15 else "missed"
    return (
        f"period 16: {lost:+.3f} bits per character against synchronous, {times:.1f} times fewer "
        f"bytes; the goal, at most +0.03 and at least 15 times, is {reached}."
    )


def run(comm: Communicator, arguments: argparse.Namespace) -> None:
    steps: int = arguments.steps
    trained: dict[str, Array] = {}

    def train_one(averager: ModelAverager, seed: int, advance: Callable[[], None]) -> list[float]:
        losses, params = train(
            averager,
            seed,
            advance,
            steps=steps,
            peak_rate=arguments.learning_rate,
            held_out_samples=arguments.held_out,
        )
        trained.update(params)
        return losses

    outcomes = compare(
        comm,
        lambda workers: periods(workers, (16, 64)),
        train_one,
        seeds=arguments.seeds,
        moments=EVALUATIONS,
        parameter_bytes=sum(array.nbytes for array in start_values(0).values()),
    )
    if comm.rank == 0:
        console, measure = Console(), Measure("held-out loss", "bits per character", 3)
        show(console, comm, "Python's source", measure, outcomes)
        millions = steps * GLOBAL_BATCH / 1e6
        draw(
            arguments.picture,
            f"Local SGD on Python's own source, {comm.size} workers",
            measure,
            outcomes,
            moments=[millions * (index + 1) / EVALUATIONS for index in range(EVALUATIONS)],
            moment_label="characters learnt from, millions",
            curve_limits=(2.2, 3.3),
        )
        console.print(f"picture: {arguments.picture}\n\nwritten by the last model:\n")
        console.print(written(trained, 400, seed=0), markup=False, highlight=False)
        if comm.size > 1:
            console.print(f"\n{verdict(outcomes)}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Local SGD on a language model of characters.")
    parser.add_argument("--threads", type=int, help="workers as threads of this process")
    parser.add_argument("--steps", type=int, default=16_384, help="a multiple of 64")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="at its peak")
    parser.add_argument("--held-out", type=int, default=HELD_OUT_SAMPLES, help="to measure on")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("out/chars.png"))
    arguments = parser.parse_args()
    if arguments.steps < 64 or arguments.steps % 64:
        parser.error(f"--steps must be a multiple of 64, got {arguments.steps}")
    if arguments.held_out < 1:
        parser.error(f"--held-out must be at least 1, got {arguments.held_out}")
    launch(run, arguments)


if __name__ == "__main__":
    main()
