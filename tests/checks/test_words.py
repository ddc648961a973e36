"""Objects and functions of a user's own: alike on every rank, though their addresses are not."""

from __future__ import annotations

from functools import partial

import numpy as np

from localsgd import Arena, Communicator, LocalSGD, ModelAverager, lr, optim, run_threads, when
from localsgd.checks.words import name_of, words_of


class Halved:
    """A rate that does not say what it is."""

    def at(self, step: int, initial: float) -> float:
        return initial / 2


class Seldom:
    """Can be called, and is no function."""

    def __init__(self, period: int) -> None:
        self.period = period

    def __call__(self, step: int) -> bool:
        return step % self.period == 0


def powers(base: float, step: int) -> float:
    return float(base**step)


def test_every_rank_may_make_its_own_rates_and_schedules() -> None:
    """At rate ½ · 1, averaged after steps 2 and 4: nothing but the gradients -1 and -3 moves."""

    def work(comm: Communicator) -> tuple[list[float], int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        rates = [Halved(), lr.from_function(partial(powers, 1.0)), lr.from_function(Seldom(1))]
        rate = lr.chain(rates, starts=[3, 9])
        training = LocalSGD(optim.SGD(arena, lr=1.0), 2, comm=comm, rate=rate)
        averager = ModelAverager(when(Seldom(2)), comm)
        for _ in range(2):
            arena.grad["x"] -= 1.0 + 2.0 * comm.rank
            training.step()
            averager.average_parameters(arena)
        return arena["x"].tolist(), averager.rounds

    assert run_threads(2, work) == [([2.0], 1)] * 2


def test_names_have_no_addresses() -> None:
    assert words_of(Halved()) == "Halved"
    assert words_of(lr.cosine(3)) == "cosine(3, minimum=0.0)"
    assert name_of(powers) == "powers"
    assert name_of(Seldom(2).__call__) == "Seldom.__call__"
    assert name_of(Seldom(2)) == "Seldom"
    assert repr(when(partial(powers, 2.0))) == "when(partial(powers), warmup_steps=0)"
    assert repr(lr.from_function(Seldom(2))) == "from_function(Seldom)"
