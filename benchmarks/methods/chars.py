"""The task of characters: the model and the data of ``examples/chars.py``, for fewer steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import chars
from chars import start_values

from localsgd import Arena, Communicator, ShardSampler, lr

STEPS = 1920
HELD_OUT = 12_800
MEASURES = {"loss": "held-out loss, bits per character"}

__all__ = ["MEASURES", "STEPS", "evaluated", "gradients", "rate", "start_values"]


def rate() -> lr.Rate:
    """Rises for a twentieth of training, then falls to zero along a cosine."""
    return chars.learning_rate(STEPS)


def gradients(params: Arena, seed: int, *, unlike: bool) -> Iterator[None]:
    """Adds the gradient of a batch of this worker at every turn, without end."""
    if unlike:
        raise ValueError("workers have the same characters")
    comm, learn = params.comm, chars.windows_of(chars.read_modules(chars.LEARNT))
    sampler = ShardSampler(len(learn), chars.GLOBAL_BATCH // comm.size, seed=seed, comm=comm)
    while True:
        for indices in sampler:
            chars.add_gradient(params, params.grad, learn[indices])
            yield


def evaluated(params: Mapping[str, Any], comm: Communicator) -> dict[str, float]:
    """What ``MEASURES`` names, of held-out characters; every worker computes its share."""
    held_out = chars.windows_of(chars.read_modules(chars.HELD_OUT))
    held_out = held_out[:: max(1, len(held_out) // HELD_OUT)][:HELD_OUT]
    return {"loss": chars.bits_per_character(params, held_out, comm)}
