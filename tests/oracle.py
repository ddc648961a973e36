"""The contract's formulas, written as they stand, to compare implementations with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsgd.comm import Communicator, Topology

Array = NDArray[Any]


def shifted_mean(values: Sequence[Array], weights: Sequence[float]) -> Array:
    """m = x_f - sum w_i (x_f - x_i) / W, in float32 (float64), rounded once to the dtype."""
    dtype = values[0].dtype
    work = np.float64 if dtype == np.float64 else np.float32
    used = [(v.astype(work), work(w)) for v, w in zip(values, weights, strict=True) if w > 0]
    first = used[0][0]
    shift = np.zeros_like(first)
    for value, weight in used:
        shift = shift + weight * (first - value)
    return (first - shift / work(sum(w for w in weights if w > 0))).astype(dtype)


def two_level_mean(values: Sequence[Array], weights: Sequence[float], topology: Topology) -> Array:
    """The shifted mean of every host, and of those, weighed by the hosts' weights."""
    hosts = [ranks for ranks in topology.hosts if any(weights[rank] > 0 for rank in ranks)]
    means = [
        shifted_mean([values[r] for r in ranks], [weights[r] for r in ranks]) for ranks in hosts
    ]
    return shifted_mean(means, [sum(weights[r] for r in ranks) for ranks in hosts])


def two_level_sum(values: Sequence[Array], topology: Topology) -> Array:
    """Plain sums in order, in float32 for the half precisions, rounded once a level."""

    def fold(terms: Sequence[Array]) -> Array:
        dtype = terms[0].dtype
        work = np.float32 if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype
        total = terms[0].astype(work)
        for term in terms[1:]:
            total = total + term.astype(work)
        return total.astype(dtype)

    return fold([fold([values[r] for r in ranks]) for ranks in topology.hosts])


def every(comm: Communicator, array: Array) -> list[Array]:
    """All ranks' arrays, as they are now."""
    return [np.array(values) for values in comm.gather(np.ascontiguousarray(array))]


def same_bits(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def some_values(rank: int, count: int, dtype: Any, *, seed: int = 0) -> Array:
    """Different values for every rank; floats over several magnitudes, both signs."""
    generator = np.random.default_rng([seed, rank, count])
    if np.dtype(dtype).kind in "iu":
        return generator.integers(0, 20, count).astype(dtype)
    spread = np.exp2(generator.integers(-6, 6, count))
    return (generator.normal(size=count) * spread).astype(dtype)
