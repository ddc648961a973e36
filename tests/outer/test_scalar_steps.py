"""A round in one compiled loop has the bits of mean and update one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import Arena, Communicator, ModelAverager, every, outer, run_threads

# Enough for compiled loops, and shards of different lengths.
COUNT = 600_001
MAKE: dict[str, Callable[[], outer.OuterOptimizer]] = {
    "sgd": lambda: outer.SGD(0.7),
    "heavy ball": lambda: outer.SGD(0.7, momentum=0.9),
    "heavy ball at rate 1": lambda: outer.SGD(1.0, momentum=0.9),
    "nesterov": lambda: outer.SGD(0.7, momentum=0.9, nesterov=True),
    "nesterov at rate 1": lambda: outer.SGD(1.0, momentum=0.9, nesterov=True),
    "slowmo": lambda: outer.SlowMo(lambda: 0.1, alpha=0.8, beta=0.6),
    "slowmo without momentum": lambda: outer.SlowMo(lambda: 0.1, alpha=0.8, beta=0.0),
}


def after_rounds(
    comm: Communicator, made: outer.OuterOptimizer, dtype: Any, *, weighted: bool
) -> list[bytes]:
    """The parameters after each of three rounds, and at last this rank's anchor and state."""
    random = np.random.default_rng(comm.rank)
    arena = Arena({"x": np.zeros(COUNT, dtype)}, comm)
    averager = ModelAverager(every(1), comm, outer=made)
    averager.begin(arena)
    found = []
    for _ in range(3):
        arena.flat[:] += random.normal(size=COUNT).astype(dtype)
        if weighted:
            averager.record_samples(comm.rank + 1)
        averager.average_parameters(arena)
        found.append(arena.flat.tobytes())
    (kept,) = averager.state_dict()["outer"]["arrays"]
    return found + [array.tobytes() for array in kept.values()]


@pytest.mark.parametrize(
    "name",
    [n if n in ("nesterov", "slowmo") else pytest.param(n, marks=pytest.mark.long) for n in MAKE],
)
@pytest.mark.parametrize(
    ("size", "dtype", "weighted"),
    [(2, np.float32, False), (3, np.float32, True), (3, np.float64, False)],
)
def test_one_loop_has_the_bits_of_mean_and_update(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int, dtype: Any, weighted: bool
) -> None:
    def train() -> list[list[bytes]]:
        return run_threads(
            size, lambda comm: after_rounds(comm, MAKE[name](), dtype, weighted=weighted)
        )

    in_one = train()
    monkeypatch.setattr(type(MAKE[name]()), "scalar_step", lambda _: None)
    assert in_one == train()


def test_the_loop_is_taken_where_ranks_share_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def update(self: outer.SGD, block: outer.Block) -> None:
        raise AssertionError("a block was updated by itself")

    monkeypatch.setattr(outer.SGD, "update", update)
    run_threads(3, lambda comm: after_rounds(comm, outer.SGD(0.7), np.float32, weighted=False))
