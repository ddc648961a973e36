"""How long training takes at best, by compute and by all-reduces that nothing hides.

The idealised wall-clock model: N parameters learn from D tokens on R chips of Q FLOP/s, and an
all-reduce among R of them costs at least ``2N (1 - 1/R) / W + latency``, N in bits.

Source: Scaling Laws for DiLoCo (arXiv 2503.09799), appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from localsgd.checks import checked_count, checked_number
from localsgd.simulate.links import NETWORKS, Link
from localsgd.simulate.utilization import Floats, bandwidths_of, positive

TimedMethod = Literal["data_parallel", "diloco"]


@dataclass(frozen=True)
class WallClock:
    """Seconds of a training; floats, or arrays in the shape of the bandwidths.

    Attributes:
        compute_s: of computing; the same for every bandwidth.
        communication_s: of all-reduces.
    """

    compute_s: float
    communication_s: Floats | float

    @property
    def total_s(self) -> Floats | float:
        """One after the other."""
        return self.compute_s + self.communication_s

    @property
    def compute_utilization(self) -> Floats | float:
        """The part of the time that is compute, in (0, 1]."""
        return self.compute_s / self.total_s


def wall_clock(
    method: TimedMethod,
    *,
    parameters: float,
    tokens: float,
    batch_tokens: float,
    chips: int,
    bandwidth_bit_s: ArrayLike,
    latency_s: float,
    replicas: int = 1,
    period: int = 1,
    bits: float = 16,
    flop_s: float = 300e12,
    inner: Link = NETWORKS["high"],
) -> WallClock:
    """Seconds of compute and of communication of a whole training.

        compute        = 6 N D / (R Q)
        data-parallel  = (2N (1 - 1/R) / W1 + e1) T                     T = D / batch
        DiLoCo, M = 1  = that times (1 + 1/H)
        DiLoCo, M > 1  = (2N (1 - M/R) / W0 + e0) T + (2N (1 - 1/R) / W1 + e1) T / H

    with N in bits where it is sent. One replica has no link between replicas, and its outer step
    costs one more all-reduce of the same chips.

    Args:
        method: "data_parallel" or "diloco".
        parameters: ``N``.
        tokens: ``D``, of the whole training.
        batch_tokens: tokens of one step of all replicas together.
        chips: ``R``, of all replicas together.
        bandwidth_bit_s: ``W1``, bit/s (not bytes), above 0, between replicas, or between all chips
            where there is one; of any shape.
        latency_s: ``e1``, seconds of one all-reduce beside its transfers.
        replicas: ``M``, which divides ``chips``; 1 with data-parallel.
        period: ``H``, steps from one outer step to the next; 1 with data-parallel.
        bits: of a number on its way.
        flop_s: ``Q``, FLOP/s that a chip reaches.
        inner: the network within a replica, ``W0`` and ``e0``; the paper's is always the high one.

    Returns:
        The seconds, arrays if the bandwidths are an array.

    Raises:
        TypeError, ValueError: for an argument that is out of range or has no meaning with the
            method.

    Source: Scaling Laws for DiLoCo (arXiv 2503.09799), appendix A.

    >>> low = NETWORKS["low"]
    >>> found = wall_clock(
    ...     "diloco", parameters=1e9, tokens=20e9, batch_tokens=2**20, chips=64, replicas=2,
    ...     period=30, bandwidth_bit_s=low.bandwidth_bit_s, latency_s=low.latency_s,
    ... )
    >>> f"{found.compute_s:.0f} s of compute, {found.communication_s:.0f} s of communication"
    '6250 s of compute, 3489 s of communication'
    """
    if method not in get_args(TimedMethod):
        raise ValueError(
            f"method must be one of {', '.join(get_args(TimedMethod))}, got {method!r}"
        )
    chips = checked_count("chips", chips, at_least=1)
    replicas = checked_count("replicas", replicas, at_least=1)
    period = checked_count("period", period, at_least=1)
    latency_s = checked_number("latency_s", latency_s)
    if method == "data_parallel" and (replicas, period) != (1, 1):
        raise ValueError(
            f"replicas and period must be 1 with data_parallel, got {replicas} and {period}"
        )
    if chips % replicas:
        raise ValueError(f"replicas must divide the {chips} chips, got {replicas}")
    count = positive("parameters", parameters)
    learnt = positive("tokens", tokens)
    steps = learnt / positive("batch_tokens", batch_tokens)
    size_bits = count * positive("bits", bits)
    compute_s = 6 * count * learnt / (chips * positive("flop_s", flop_s))
    outer_s = 2 * size_bits * (1 - 1 / chips) / bandwidths_of(bandwidth_bit_s) + latency_s
    if method == "data_parallel":
        communication_s = outer_s * steps
    elif replicas == 1:
        communication_s = outer_s * steps * (1 + 1 / period)
    else:
        inner_s = 2 * size_bits * (1 - replicas / chips) / inner.bandwidth_bit_s + inner.latency_s
        communication_s = inner_s * steps + outer_s * steps / period
    if np.ndim(bandwidth_bit_s):
        return WallClock(compute_s, communication_s)
    return WallClock(compute_s, float(communication_s))
