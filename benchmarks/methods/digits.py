"""The task of handwritten digits: the model and the data of ``examples/digits.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from digits import (
    GLOBAL_BATCH,
    Digits,
    accuracy,
    add_gradient,
    batches,
    forward,
    read_digits,
    start_values,
)

from localsgd import Arena, Communicator, lr

STEPS = 960
MEASURES = {
    "loss": "held-out loss, nats",
    "accuracy": "held-out accuracy, %",
    "learnt": "loss on what was learnt from, nats",
}

__all__ = ["MEASURES", "STEPS", "evaluated", "gradients", "rate", "start_values"]


def rate() -> lr.Rate:
    """Falls to zero along a cosine."""
    return lr.cosine(STEPS)


def gradients(params: Arena, seed: int, *, unlike: bool) -> Iterator[None]:
    """Adds the gradient of a batch of this worker at every turn, without end.

    Args:
        unlike: whether workers have different digits.
    """
    learn, _ = read_digits()
    mine, comm = (own(learn, params.comm) if unlike else learn), params.comm
    for epoch in range(STEPS):
        for batch in (
            own_batches(mine, comm, seed, epoch) if unlike else batches(mine, comm, seed, epoch)
        ):
            add_gradient(params, batch)
            yield


def own(digits: Digits, comm: Communicator) -> Digits:
    """This worker's part: a tenth of the digits is dealt out, the rest sorted by what they show.

    Of ten kinds of digits and four workers each has two or three.
    """
    index = np.arange(len(digits.labels))
    dealt, rest = index[::10], index[index % 10 > 0]
    rest = rest[np.argsort(digits.labels[rest], kind="stable")]
    parts = [np.array_split(half, comm.size)[comm.rank] for half in (dealt, rest)]
    return digits.take(np.concatenate(parts))


def own_batches(digits: Digits, comm: Communicator, seed: int, epoch: int) -> Iterator[Digits]:
    """A worker's digits in random order, as many batches on every worker."""
    order = np.random.default_rng([seed, epoch, comm.rank]).permutation(len(digits.labels))
    each = GLOBAL_BATCH // comm.size
    for start in range(0, min(comm.collect(len(order))) - each + 1, each):
        yield digits.take(order[start : start + each])


def evaluated(params: Mapping[str, Any], comm: Communicator) -> dict[str, float]:
    """What ``MEASURES`` names."""
    learn, held_out = read_digits()
    values = dict(params)
    return {
        "loss": loss(values, held_out),
        "accuracy": accuracy(values, held_out),
        "learnt": loss(values, learn),
    }


def loss(params: dict[str, Any], digits: Digits) -> float:
    """The mean cross-entropy, in nats."""
    _, probabilities = forward(params, digits.images)
    likely = probabilities[np.arange(len(digits.labels)), digits.labels]
    return -float(np.log(np.maximum(likely, 1e-30), dtype=np.float64).mean())
