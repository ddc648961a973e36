"""One of every averager, for tests of what all of them promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    DirectionalAverager,
    DynamicAverager,
    ElasticAverager,
    HierarchicalModelAverager,
    LowRankAverager,
    ModelAverager,
    OverlappedAverager,
    Participation,
    PeriodicModelAverager,
    ProportionalAverager,
    SparseAverager,
    StreamingAverager,
    Timed,
    codecs,
    every,
    gossip,
    optim,
    outer,
    quadratic,
)


@dataclass(frozen=True)
class Kind:
    """An averager, and what it promises.

    Attributes:
        make: makes it; its first round of all is after a step of at most 3.
        equal: whether workers are equal after a round of all.
        samples: whether workers may weigh by samples.
    """

    make: Callable[[Communicator], ModelAverager]
    equal: bool = True
    samples: bool = True


def nesterov() -> outer.OuterOptimizer:
    return outer.SGD(0.7, momentum=0.9, nesterov=True)


def ticks() -> Callable[[], float]:
    """A clock that goes on by a second whenever it is asked."""
    seconds = count()
    return lambda: float(next(seconds))


KINDS: dict[str, Kind] = {
    "every": Kind(lambda comm: ModelAverager(every(2), comm)),
    "every, together first": Kind(lambda comm: ModelAverager(every(3, synchronous_steps=2), comm)),
    "quadratic": Kind(lambda comm: ModelAverager(quadratic(2, 1.0, lambda _: 0.9), comm)),
    "timed": Kind(lambda comm: ModelAverager(Timed(2.0, clock=ticks()), comm)),
    "directional": Kind(lambda comm: DirectionalAverager(every(2), comm, outer=nesterov())),
    "dynamic": Kind(lambda comm: DynamicAverager(every(1), 1.0, comm, outer=nesterov())),
    "proportional": Kind(lambda comm: ProportionalAverager(2, comm, clock=ticks())),
    "periodic": Kind(lambda comm: PeriodicModelAverager(3, 1, comm)),
    "hierarchical": Kind(
        lambda comm: HierarchicalModelAverager({2: "host", 4: "world"}, 1, comm), equal=False
    ),
    "diloco": Kind(lambda comm: ModelAverager(every(2), comm, outer=nesterov())),
    "adam outside": Kind(
        lambda comm: ModelAverager(every(2), comm, outer=outer.using(optim.Adam, lr=0.1))
    ),
    "yogi outside": Kind(lambda comm: ModelAverager(every(2), comm, outer=outer.Yogi(0.1))),
    "slowmo": Kind(
        lambda comm: ModelAverager(every(2), comm, outer=outer.SlowMo(lambda: 0.1, beta=0.6))
    ),
    "int8": Kind(
        lambda comm: ModelAverager(
            every(2), comm, compress=codecs.Int8(8, stochastic=True), outer=nesterov()
        )
    ),
    "top-k": Kind(lambda comm: ModelAverager(every(2), comm, compress=codecs.TopK(2, 8))),
    "a sample of workers": Kind(
        lambda comm: ModelAverager(every(2), comm, participation=Participation(0.5))
    ),
    "low rank": Kind(lambda comm: LowRankAverager(every(2), 1, comm, outer=nesterov())),
    "sparse": Kind(lambda comm: SparseAverager(every(2), codecs.TopK(2, 8), comm)),
    "sparse, 2 bits": Kind(
        lambda comm: SparseAverager(
            every(2),
            codecs.TopK(2, 8, values=codecs.TwoBit(8)),
            comm,
            outer=outer.using(optim.Adam, lr=0.1),
        )
    ),
    "directional, compressed": Kind(
        lambda comm: DirectionalAverager(
            every(2), comm, plain=["b"], outer=nesterov(), compress=codecs.RandomK(0.3)
        )
    ),
    "streaming": Kind(
        lambda comm: StreamingAverager(
            4, 2, comm, outer=nesterov(), delay=3, mixing=0.5, compress=codecs.E3M0(8)
        ),
        equal=False,
    ),
    "overlapped": Kind(lambda comm: OverlappedAverager(3, 2, comm), equal=False),
    "elastic": Kind(lambda comm: ElasticAverager(every(2), comm), equal=False),
    "d-psgd": Kind(
        lambda comm: gossip.GossipAverager(every(2), gossip.one_peer_exponential(), comm),
        equal=False,
        samples=False,
    ),
    "push-sum": Kind(
        lambda comm: gossip.PushSumAverager(every(2), gossip.exponential(), comm),
        equal=False,
        samples=False,
    ),
    "noloco": Kind(lambda comm: gossip.NoLoCoAverager(every(2), comm), equal=False, samples=False),
    "choco": Kind(
        lambda comm: gossip.ChocoAverager(every(2), gossip.ring(), codecs.TopK(2, 8), 0.3, comm),
        equal=False,
        samples=False,
    ),
}

_FIRST = ("every", "hierarchical", "diloco", "streaming", "int8", "push-sum")
# What a test takes that is about all of them: these, and by `make test-long` the others.
FIRST_AND_LATER = [
    name if name in _FIRST else pytest.param(name, marks=pytest.mark.long) for name in KINDS
]


def arenas(comm: Communicator) -> list[Arena]:
    return [
        Arena({"a": np.ones((3, 4)), "b": np.zeros(5)}, comm, grad=False),
        Arena({"c": np.ones(9, np.float32)}, comm, grad=False),
    ]


def train(kind: Kind, averager: ModelAverager, params: list[Arena], steps: range) -> list[bool]:
    """Takes steps that depend on where a worker stands; says after which a round was held."""
    held = []
    for step in steps:
        for arena in params:
            rank, index = arena.comm.rank, np.arange(arena.flat.size)
            arena.flat[...] -= 0.05 * (rank + 1) * (arena.flat - np.cos(index + rank + step))
        if kind.samples:
            averager.record_samples(arena.comm.rank + step)
        held.append(averager.average_parameters(params))
    return held
