"""Outer optimizer, codec, schedule or hierarchy, and state: together, in one training."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, product
from typing import Any

import numpy as np
import pytest

from localsgd import (
    EASGD,
    SCAFFOLD,
    AdaComm,
    Arena,
    Communicator,
    DirectionalAverager,
    DynamicAverager,
    HierarchicalModelAverager,
    LowRankAverager,
    ModelAverager,
    Participation,
    PostLocalSGDOptimizer,
    ProportionalAverager,
    SparseAverager,
    StreamingAverager,
    aligned,
    codecs,
    every,
    gossip,
    optim,
    outer,
    quadratic,
    run_threads,
)
from workers import outcomes

STEPS, STOP = 10, 5
OUTER: dict[str, Callable[[optim.Optimizer], outer.OuterOptimizer | None]] = {
    "none": lambda _: None,
    "nesterov": lambda _: outer.SGD(0.7, momentum=0.9, nesterov=True),
    "slowmo": lambda inner: outer.SlowMo(inner, beta=0.6),
    "adam": lambda _: outer.using(optim.Adam, lr=0.05),
}
CODECS: dict[str, codecs.Codec | None] = {
    "none": None,
    "2 bits": codecs.TwoBit(8),
    "top-k in stochastic int8": codecs.TopK(2, 8, values=codecs.Int8(8, stochastic=True)),
}


def ticks() -> Callable[[], float]:
    """A clock that goes on by a second whenever it is asked."""
    seconds = count()
    return lambda: float(next(seconds))


def rate(step: int) -> float:
    """With which the second round is longer than the first."""
    return 0.1 if step < 3 else 0.05


# Made of the workers and the options.
AVERAGERS: dict[str, Callable[..., ModelAverager]] = {
    "every": lambda comm, **o: ModelAverager(every(3), comm, **o),
    "together": lambda comm, **o: ModelAverager(every(2, synchronous_steps=3), comm, **o),
    "aligned, a sample": lambda comm, **o: ModelAverager(
        aligned(4), comm, participation=Participation(2), **o
    ),
    "quadratic": lambda comm, **o: ModelAverager(quadratic(3, 0.1, rate), comm, **o),
    "adacomm": lambda comm, **o: ModelAverager(AdaComm(3, 0.0, clock=ticks()), comm, **o),
    "hierarchy": lambda comm, **o: HierarchicalModelAverager({2: "host", 4: "world"}, 1, comm, **o),
    "dynamic": lambda comm, **o: DynamicAverager(every(3), 0.0, comm, **o),
    "proportional": lambda comm, **o: ProportionalAverager(3, comm, clock=ticks(), **o),
    "streaming": lambda comm, **o: StreamingAverager(4, 2, comm, delay=1, mixing=0.5, **o),
}


def made(
    comm: Communicator, when: str, step: str, codec: str, inner: str
) -> tuple[PostLocalSGDOptimizer, Arena]:
    """A training whose inner optimizer is one for the outer optimizer named ``inner``."""
    values = np.linspace(-1, 1, 40, dtype=np.float32)
    arena = Arena({"a": values[:24].reshape(4, 6), "b": values[24:]}, comm)
    optimizer: optim.Optimizer = optim.AdamW(arena, lr=0.02)
    if inner == "slowmo":
        optimizer = optim.SGD(arena, lr=0.1, momentum=0.5)
    averager = AVERAGERS[when](comm, outer=OUTER[step](optimizer), compress=CODECS[codec])
    return PostLocalSGDOptimizer(optimizer, averager, state="mean"), arena


def train(training: PostLocalSGDOptimizer, arena: Arena, last: int) -> None:
    while training.averager.step < last:
        step, rank = training.averager.step, arena.comm.rank
        index = np.arange(arena.flat.size)
        arena.grad.flat[:] += (rank + 1) * (arena.flat - np.cos(index + rank)) + np.sin(step)
        schedule = training.averager.schedule
        if isinstance(schedule, AdaComm):
            schedule.record_loss(float(np.square(arena.flat).sum()))
        training.step()


@pytest.mark.parametrize(
    ("when", "step", "codec"),
    [
        ("every", "slowmo", "2 bits"),
        ("together", "adam", "top-k in stochastic int8"),
        ("aligned, a sample", "nesterov", "top-k in stochastic int8"),
        ("quadratic", "adam", "2 bits"),
        ("adacomm", "slowmo", "top-k in stochastic int8"),
        ("hierarchy", "nesterov", "2 bits"),
        ("dynamic", "adam", "2 bits"),
        ("proportional", "nesterov", "top-k in stochastic int8"),
        ("streaming", "slowmo", "2 bits"),
    ],
)
def test_all_together_ranks_are_equal_and_resume_and_nothing_is_left_out(
    when: str, step: str, codec: str
) -> None:
    """Without the outer optimizer, the codec, or both, the end is another: none was ignored."""

    def work(comm: Communicator) -> list[bytes]:
        ends = []
        for names in product(("none", step), ("none", codec)):
            training, arena = made(comm, when, *names, inner=step)
            train(training, arena, STOP)
            state, there = training.state_dict(), arena.flat.copy()
            train(training, arena, STEPS)
            training.flush()
            ends.append(arena.flat.tobytes())
        later, place = made(comm, when, step, codec, inner=step)
        later.load_state_dict(state)
        place.flat[...] = there
        train(later, place, STEPS)
        later.flush()
        assert place.flat.tobytes() == ends[-1]
        return ends

    first, *others = run_threads(3, work, hosts="2+1")
    assert others == [first] * 2
    assert len(set(first)) == 4


def two_rates(arena: Arena) -> optim.SGD:
    groups: Any = [{"params": arena.subset("a")}, {"params": arena.subset("b"), "lr": 0.2}]
    return optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda arena, comm: ModelAverager(
                every(1), comm, compress=codecs.RandomK(0.5, unbiased=True)
            ),
            "an unbiased codec must go with error_feedback=False",
        ),
        (
            lambda arena, comm: SparseAverager(
                every(1), codecs.TopK(1, 4), comm, lr=0.5, outer=outer.SGD(0.7)
            ),
            "lr must be 1 with an outer optimizer",
        ),
        (
            lambda arena, comm: DirectionalAverager(
                every(1), comm, compress=codecs.RandomK(0.5, unbiased=True)
            ),
            "codec must lose less than there is",
        ),
        (
            lambda arena, comm: LowRankAverager(every(1), 1, comm, outer=optim.SGD(arena, lr=1.0)),
            "outer must be an optimizer of localsgd.outer, got SGD",
        ),
        (
            lambda arena, comm: gossip.GossipAverager(AdaComm(2), gossip.ring(), comm),
            "gossip must have a schedule of fixed steps",
        ),
        (
            lambda arena, comm: EASGD(optim.SGD(arena, lr=0.1), 2, compress=codecs.TwoBit()),
            "EASGD must have exact rounds",
        ),
        (
            lambda arena, comm: SCAFFOLD(optim.SGD(arena, lr=0.1), 2, compress=codecs.TwoBit()),
            "SCAFFOLD must have exact rounds",
        ),
        (
            lambda arena, comm: outer.SlowMo(two_rates(arena)).begin_round(),
            "groups must have one learning rate under SlowMo, got",
        ),
        (
            lambda arena, comm: outer.using(optim.Muon, lr=0.1),
            "kind must have a rule for each number, got Muon",
        ),
        (
            lambda arena, comm: ProportionalAverager(2, comm).allow_uneven(True),
            "workers must take equal steps in uneven",
        ),
    ],
)
def test_what_has_no_meaning_together_is_refused_on_every_rank(make: Any, message: str) -> None:
    def work(comm: Communicator) -> None:
        make(Arena({"a": np.ones(4), "b": np.ones(3)}, comm), comm)

    for found in outcomes(2, work):
        assert isinstance(found, TypeError | ValueError), found
        assert message in str(found)
