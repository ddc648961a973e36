"""What tests of the local optimizers share: one of each kind, a small model, and steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from localsgd import Arena, Communicator, optim, solo

MAKERS: list[Callable[[Any], optim.Optimizer]] = [
    lambda params: optim.SGD(params, lr=0.125, momentum=0.5, weight_decay=0.25),
    lambda params: optim.AdamW(params, lr=0.125),
    lambda params: optim.Adam(params, lr=0.125, amsgrad=True, weight_decay=0.25),
    lambda params: optim.Adagrad(params, lr=0.125, initial_accumulator_value=0.5, lr_decay=0.25),
    lambda params: optim.RMSprop(params, lr=0.125, centered=True, momentum=0.5),
    lambda params: optim.Lion(params, lr=0.125, weight_decay=0.25),
]
KINDS = ["SGD", "AdamW", "Adam", "Adagrad", "RMSprop", "Lion"]


def model(comm: Communicator | None = None, dtype: Any = np.float64) -> Arena:
    """Eight ones."""
    return Arena(
        {"w": np.ones((2, 2), dtype), "b": np.ones(3, dtype), "v": np.ones(1, dtype)},
        solo() if comm is None else comm,
    )


def take_steps(optimizer: optim.Optimizer, arena: Arena, first: int, last: int) -> None:
    """Takes steps of these numbers, with gradients that depend on nothing else."""
    for step in range(first, last + 1):
        arena.grad.flat[...] = np.sin(step + np.arange(arena.flat.size))
        optimizer.step()
