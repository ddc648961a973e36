"""Who mixes with whom, and by which weights: graphs of workers.

Row i of a graph's matrix has the weights with which worker i takes the others' values, its own
included; column j those by which worker j is taken. Where rows and columns sum to 1 (doubly
stochastic) mixing keeps the mean; where columns do, it keeps the sum.

Sources: Lian et al., D-PSGD (arXiv 1705.09056): ring; Koloskova et al., CHOCO-SGD
(arXiv 1902.00340): torus; Assran et al., Stochastic Gradient Push (arXiv 1811.10792): exponential
graphs; Kolehmainen et al., NoLoCo (arXiv 2506.10911): random pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localsgd.checks import checked_count

Matrix = NDArray[np.float64]
# Of a sum that is to be 1, for weights written as decimal fractions.
_TOLERANCE = 1e-9


class Graph(ABC):
    """Mixing weights for a number of workers and a round; its ``repr`` is compared between ranks.

    Attributes:
        period: after how many rounds the weights repeat; 1 if they never change, 0 if they are
            other ones in every round.
    """

    period: int = 1

    @abstractmethod
    def matrix(self, size: int, round: int = 0) -> Matrix:
        """The weights in this round, shape ``(size, size)``; rounds count from 0.

        Raises:
            ValueError: if there is none for so many workers.
        """


class _Regular(Graph):
    """Every worker takes itself and some others, each by the same weight."""

    @abstractmethod
    def sources(self, rank: int, size: int, round: int) -> Sequence[int]:
        """The others that a worker takes; may name one more than once, or the worker itself."""

    def matrix(self, size: int, round: int = 0) -> Matrix:
        found = np.zeros((size, size))
        for rank in range(size):
            members = {rank, *self.sources(rank, size, round)}
            found[rank, list(members)] = 1 / len(members)
        return found

    def __repr__(self) -> str:
        return f"gossip.{type(self).__name__.lower()}()"


class Ring(_Regular):
    def sources(self, rank: int, size: int, round: int) -> Sequence[int]:
        return (rank - 1) % size, (rank + 1) % size


class Torus(_Regular):
    def __init__(self, rows: int | None) -> None:
        self._rows = None if rows is None else checked_count("rows", rows, at_least=1)

    def sources(self, rank: int, size: int, round: int) -> Sequence[int]:
        rows = self._rows or max(n for n in range(1, size + 1) if n * n <= size and size % n == 0)
        if size % rows:
            raise ValueError(f"rows must divide the {size} workers, got {rows}")
        columns = size // rows
        row, column = divmod(rank, columns)
        beside = [row * columns + (column + step) % columns for step in (-1, 1)]
        return [*beside, *((row + step) % rows * columns + column for step in (-1, 1))]

    def __repr__(self) -> str:
        return f"gossip.torus({'' if self._rows is None else self._rows})"


class Exponential(_Regular):
    def sources(self, rank: int, size: int, round: int) -> Sequence[int]:
        return [(rank - 2**power) % size for power in range(_doublings(size))]


class OnePeerExponential(_Regular):
    period = 0

    def sources(self, rank: int, size: int, round: int) -> Sequence[int]:
        return [(rank - 2 ** (round % max(_doublings(size), 1))) % size]

    def __repr__(self) -> str:
        return "gossip.one_peer_exponential()"


class RandomPairs(_Regular):
    period = 0

    def __init__(self, seed: int) -> None:
        self._seed = checked_count("seed", seed, at_least=0)

    def sources(self, rank: int, size: int, round: int) -> Sequence[int]:
        # Raw words, whose stream numpy promises to keep from version to version.
        words = np.random.Philox(key=[self._seed, round]).random_raw(size)
        order = np.argsort(words, kind="stable").tolist()
        place = order.index(rank) ^ 1
        return [order[place]] if place < size else []

    def __repr__(self) -> str:
        return f"gossip.random_pairs(seed={self._seed})"


class Given(Graph):
    def __init__(self, weights: ArrayLike) -> None:
        self._weights = np.array(weights, np.float64)
        if self._weights.ndim != 2 or len(set(self._weights.shape)) != 1:
            raise ValueError(f"a mixing matrix must be square, got shape {self._weights.shape}")

    def matrix(self, size: int, round: int = 0) -> Matrix:
        if size != len(self._weights):
            raise ValueError(
                f"a mixing matrix must have a row for each of {size} workers, got "
                f"{len(self._weights)}"
            )
        return self._weights.copy()

    def __repr__(self) -> str:
        return f"gossip.matrix({self._weights.tolist()})"


def ring() -> Graph:
    """Every worker and its two neighbours, a third each; two workers are a pair."""
    return Ring()


def torus(rows: int | None = None) -> Graph:
    """Every worker and its four neighbours on a grid whose ends meet, a fifth each.

    Args:
        rows: of the grid; None takes the largest divisor of the number of workers that is at most
            its root. Must divide that number.
    """
    return Torus(rows)


def exponential() -> Graph:
    """Every worker, and those 1, 2, 4, … before it, all by the same weight."""
    return Exponential()


def one_peer_exponential() -> Graph:
    """Every worker and one other: that 1 before it, in the next round 2, then 4, …, in turn.

    With 2^k workers k rounds give all the mean.
    """
    return OnePeerExponential()


def random_pairs(seed: int = 0) -> Graph:
    """Pairs of workers, others in every round; of an odd number one stays alone.

    Args:
        seed: of the choice, which all ranks make alike; at least 0.
    """
    return RandomPairs(seed)


def matrix(weights: ArrayLike) -> Graph:
    """Weights of one's own, shape ``(workers, workers)``, row i those with which i takes others."""
    return Given(weights)


def check_stochastic(weights: Matrix, *, rows: bool) -> None:
    """Raises unless no weight is negative and columns sum to 1, and rows if wanted.

    Raises:
        ValueError: naming the first row or column.
    """
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError(f"mixing weights must be finite and at least 0, got {weights.min()}")
    sums: list[tuple[str, Any]] = [("column", weights.sum(axis=0))]
    if rows:
        sums.insert(0, ("row", weights.sum(axis=1)))
    for name, totals in sums:
        for index in np.flatnonzero(np.abs(totals - 1) > _TOLERANCE):
            raise ValueError(
                f"every {name} of mixing weights must sum to 1 (within {_TOLERANCE:g}), got "
                f"{totals[index]} in {name} {index}"
            )


def spectral_gap(graph: Graph, size: int, round: int = 0) -> float:
    """1 minus the second largest magnitude of an eigenvalue: how fast workers come together.

    A round shrinks their distance from the mean by 1 minus the gap, in the long run; 1 means that
    one round gives all the mean. Of graphs that change it says little about a single round.
    """
    magnitudes = np.sort(np.abs(np.linalg.eigvals(graph.matrix(size, round))))
    return 1.0 if size == 1 else float(1 - magnitudes[-2])


def _doublings(size: int) -> int:
    """How many of 1, 2, 4, … are below a number of workers."""
    return (size - 1).bit_length()
