"""The core's averagers on torch's parameters give the bits of those on numpy's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import (
    Arena,
    Communicator,
    DirectionalAverager,
    DynamicAverager,
    LowRankAverager,
    ModelAverager,
    SparseAverager,
    Timed,
    every,
    gossip,
    run_threads,
)
from localsgd.comm.codecs import Int8, TopK, TwoBit


def ticks() -> Callable[[], float]:
    """A clock that goes on by a second whenever it is asked."""
    seconds = count()
    return lambda: float(next(seconds))


KINDS: dict[str, Callable[[Communicator], ModelAverager]] = {
    "D-PSGD": lambda comm: gossip.GossipAverager(every(2), gossip.ring(), comm),
    "push-sum": lambda comm: gossip.PushSumAverager(every(2), gossip.exponential(), comm),
    "NoLoCo": lambda comm: gossip.NoLoCoAverager(every(2), comm),
    "CHOCO": lambda comm: gossip.ChocoAverager(every(2), gossip.ring(), Int8(8), 0.5, comm),
    "timed": lambda comm: ModelAverager(Timed(3.0, first_period=2, clock=ticks()), comm),
    "dynamic": lambda comm: DynamicAverager(every(1), 40.0, comm),
    "directional": lambda comm: DirectionalAverager(every(2), comm, plain=["b"]),
    "sparse": lambda comm: SparseAverager(every(2), TopK(2, 8, values=TwoBit(8)), comm),
    "low rank": lambda comm: LowRankAverager(every(2), 1, comm),
}


@pytest.mark.parametrize("kind", KINDS)
def test_torch_gives_the_bits_of_numpy(kind: str) -> None:
    def work(comm: Communicator) -> None:
        arena = Arena({"a": np.ones((3, 2), np.float32), "b": np.zeros(5, np.float32)}, comm)
        params = {"a": Parameter(torch.ones(3, 2)), "b": Parameter(torch.zeros(5))}
        averager = KINDS[kind](comm)
        averager.begin(arena)
        training = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(params.items(), lr=0.1), KINDS[kind](comm)
        )
        training.averager.begin(training.param_groups)
        random = np.random.default_rng(comm.rank)

        def same() -> bool:
            mine: Any = [param.detach().numpy().tobytes() for param in params.values()]
            return b"".join(mine) == arena.flat.tobytes()

        for _ in range(7):
            for name, param in params.items():
                move = random.normal(size=arena[name].shape).astype(np.float32)
                arena[name][...] += move
                param.grad = torch.zeros_like(param)
                param.detach().add_(torch.from_numpy(move))
            averager.average_parameters(arena)
            training.step()
            assert same()
        averager.flush(arena)
        training.flush()
        assert same()

    run_threads(4, work, hosts="2+2")
