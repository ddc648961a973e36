"""What time it is for rank 0: every rank asks it a few times, and believes the quickest answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from localsgd.comm import Communicator

_QUESTIONS = 8


@dataclass(frozen=True)
class Alignment:
    """How to read a rank's clock, as it was when it asked.

    Attributes:
        offset_s: what is added to this rank's clock for that of rank 0.
        error_s: by how much that may be wrong: half of the quickest answer's way there and back.
        origin_s: what rank 0's clock showed when it was ``origin_unix_s``.
        origin_unix_s: in seconds since 1970, by rank 0.
    """

    offset_s: float
    error_s: float
    origin_s: float
    origin_unix_s: float


def aligned(comm: Communicator, clock: Callable[[], float]) -> Alignment:
    """How this rank's clock stands to that of rank 0. Collective.

    An answer holds rank 0's time at a moment between question and answer; taken for the middle,
    it is wrong by half of what lies between them at most. Clocks that run at different speeds
    drift apart later.

    Source: Cristian, Probabilistic clock synchronization (1989), section 3.
    """
    origin_s, unix_s = comm.collect([clock(), time.time()])[0]
    offset_s, error_s = 0.0, 0.0 if comm.rank == 0 else math.inf
    times, nothing = np.zeros(1), np.zeros(1)
    for rank in range(1, comm.size):
        for _ in range(_QUESTIONS):
            if comm.rank == 0:
                comm.exchange({}, {rank: nothing})
                times[0] = clock()
                comm.exchange({rank: times}, {})
            elif comm.rank == rank:
                asked = clock()
                comm.exchange({0: nothing}, {})
                comm.exchange({}, {0: times})
                answered = clock()
                if (answered - asked) / 2 < error_s:
                    error_s = (answered - asked) / 2
                    offset_s = float(times[0]) - (asked + answered) / 2
    return Alignment(offset_s, error_s, origin_s, unix_s)
