"""Reductions of few numbers: everyone sees all values with the headers, and nobody waits again.

On a host they stand on the board. Each host's ranks combine them all alike, and what comes out goes
to the other hosts in the message that has the headers: one message where a pass sends three. Every
rank then combines the hosts' values by itself, in the order of a pass and so to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..contract import Array, Op
from ..meeting import SMALL_BYTES, Board, Entrance
from ..topology import Topology
from .arithmetic import blend
from .finite import write_finite
from .fused import Job, Scratches

# Every rank of a host sends the host's values to every other host. More bytes than these for a
# host take longer on a slow link than the messages that they save.
_HOST_BYTES = 65_536


def is_small(nbytes: int, topology: Topology) -> bool:
    """Whether a buffer is shown with the headers; equal on all ranks."""
    others = len(topology.hosts) - 1
    most = max(len(ranks) for ranks in topology.hosts)
    return nbytes <= SMALL_BYTES and nbytes * others * most <= _HOST_BYTES


class Small:
    """Reductions of buffers of one dtype and length with one operation.

    Whoever calls sees to it that numpy does not warn of overflow and NaN, which are the data's
    business.

    Attributes:
        is_finite: whether all numbers of the last result are finite, if they were to be.
    """

    is_finite = True

    def __init__(
        self,
        board: Board,
        entrance: Entrance,
        topology: Topology,
        rank: int,
        scratches: Scratches,
        op: Op,
        dtype: np.dtype[Any],
        count: int,
    ) -> None:
        self._entrance, self._scratches = entrance, scratches
        self._op, self._dtype, self._nbytes = op, dtype, count * dtype.itemsize
        ranks = topology.neighbours(rank)
        self._me, self._equal = ranks.index(rank), [1.0] * len(ranks)
        self._sizes = [float(len(host)) for host in topology.hosts]
        # A collective's values lie in one of two slots.
        self._parts = [board.data(slot, dtype, count) for slot in (0, 1)]

    def show(self, buffer: Array) -> None:
        """Shows this rank's values in the collective that it is about to enter."""
        self._parts[(self._entrance.sequence + 1) % 2][self._me][...] = buffer

    def offer(self) -> Array:
        """The host's values combined, once all its ranks have shown theirs."""
        return self._combine(self._equal, ())

    def run(self, buffer: Array, job: Job) -> int:
        """Reduces once all have entered; returns how many bytes of neighbours were read.

        Args:
            job: with equal weights and mix 0 where there are other hosts.
        """
        weights, outs = job.weights, () if job.finite or job.mix else [buffer]
        if len(self._sizes) > 1:
            values = [offer.view(self._dtype) for offer in self._entrance.offers]
            result = self._scratches.of_hosts.combine(self._op, values, self._sizes, outs)
        else:
            result = self._combine(weights, outs)
        if job.finite:
            self.is_finite = write_finite(result, [buffer], job.mix)
        elif job.mix:
            blend(buffer, result, job.mix, buffer)
        if len(self._sizes) > 1:
            return self._nbytes * (len(self._equal) - 1)
        return self._nbytes * (sum(map(bool, weights)) - bool(weights[self._me]))

    def _combine(self, weights: Sequence[float], outs: Sequence[Array]) -> Array:
        parts = self._parts[self._entrance.sequence % 2]
        return self._scratches.of_host.combine(self._op, parts, weights, outs)
