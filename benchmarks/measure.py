"""How long things take, in the processes that do them.

Ways of doing one thing take turns (A B C, B C A, …), so that a machine that slows down slows all
of them. Every turn begins at a barrier and counts as long as its slowest rank took.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Times: TypeAlias = dict[str, list[float]]

_WARM_UPS = 2


def in_turn(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    calls: int = 1,
    before: Callable[[], object] | None = None,
) -> Times:
    """Seconds per call of every way in every round.

    Args:
        calls: calls per turn, for what is too short to be timed alone.
        before: prepares a turn, outside of the time.
    """
    return _timed(ways, rounds, calls, before, meet=lambda: None)


def in_turn_on_all_ranks(
    ways: Mapping[str, Callable[[], object]], rounds: int, *, calls: int = 1
) -> Times:
    """As ``in_turn``, for what the ranks of an MPI job do together; equal on all ranks.

    Collective; after ``localsgd.world()``, which sets MPI up before it starts.
    """
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    mine = _timed(ways, rounds, calls, None, meet=world.Barrier)
    slowest = {}
    for name, seconds in mine.items():
        values = np.array(seconds)
        world.Allreduce(MPI.IN_PLACE, values, MPI.MAX)
        slowest[name] = values.tolist()
    return slowest


def _timed(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int,
    before: Callable[[], object] | None,
    meet: Callable[[], object],
) -> Times:
    names = list(ways)
    times: Times = {name: [] for name in names}
    for turn in range(-_WARM_UPS, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            way = ways[name]
            if before is not None:
                before()
            meet()
            begin = time.perf_counter()
            for _ in range(calls):
                way()
            seconds = (time.perf_counter() - begin) / calls
            if turn >= 0:
                times[name].append(seconds)
    return times


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0])
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)
