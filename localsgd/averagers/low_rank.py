"""Rounds in which matrices travel as two thin ones: PowerSGD's compression of what workers moved.

Source: Vogels et al., PowerSGD (arXiv 1905.13727), Algorithm 1, with the residual of the authors'
code: against what all workers' matrices came to together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from localsgd.arrays import Arena
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.moves import Merged, MovesAverager
from localsgd.checks import agreed_among, checked_count, workers_of
from localsgd.comm.contract import Array, Communicator
from localsgd.outer import OuterOptimizer
from localsgd.schedules import Schedule


class LowRankAverager(MovesAverager):
    """Averages of every matrix M = residual + anchor - params an approximation of low rank:

        P = mean(M Q)        P = its columns, orthonormal        Q = mean(Mᵀ P)
        residual = M - P Qᵀ        params = anchor = anchor - P Qᵀ

    Q is where the round before ended. An array of more dimensions is a matrix of its first one and
    all others; one of a single dimension, and one that two thin matrices would not make smaller,
    goes as it is. Where the mean of M has at most the rank a round is exact.

    Attributes:
        rank: of the approximation.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        comm: Communicator | None = None,
        *,
        seed: int = 0,
        outer: OuterOptimizer | None = None,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            rank: of the approximation, at least 1; 1 to 4 in the paper.
            comm: the workers that take part; None means ``localsgd.world()``.
            seed: of the first Q.
            outer: makes the parameters after a round, with P Qᵀ for its delta; None descends it.
            guard: as in ``ModelAverager``; it looks before a round.

        Raises:
            TypeError, ValueError: for a number out of its range.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)
        self.rank, self._seed = agreed_among(
            comm,
            "ranks of matrices",
            lambda: (
                checked_count("rank", rank, at_least=1),
                checked_count("seed", seed, at_least=0),
            ),
            lambda made: [repr(made)],
        )
        super().__init__(schedule, comm, "low rank", outer=outer, guard=guard)

    def _beside(self, arena: Arena, anchor: Array) -> dict[str, Array]:
        random = np.random.Generator(np.random.Philox([self._seed, arena.flat.size]))
        width = sum(matrix.shape[1] for matrix in self._matrices(arena, anchor))
        # Whole numbers, which every version draws alike, and no zeros.
        right = 1.0 + random.integers(0, 1 << 16, self.rank * width) / (1 << 15)
        right[random.integers(0, 2, right.size) == 1] *= -1
        return {"residual": np.zeros_like(anchor), "right": right.astype(anchor.dtype)}

    def _merge(
        self,
        index: int,
        arena: Arena,
        kept: Mapping[str, Array],
        group: Communicator,
        weight: float | None,
        label: str,
    ) -> Merged:
        wanted = kept["residual"] + (kept["anchor"] - arena.flat)
        merged, right = np.zeros_like(wanted), kept["right"].copy()
        sides = list(self._sides(arena, wanted, right))
        left = np.concatenate(
            [*((m @ q).reshape(-1) for m, q in sides), *self._plain(arena, wanted)]
        )
        group.allreduce(left, "mean", weight=weight, label=label)
        lefts, place = [], 0
        for matrix, _ in sides:
            size = matrix.shape[0] * self.rank
            lefts.append(left[place : place + size].reshape(-1, self.rank))
            if group.rank == 0:
                _make_orthonormal(lefts[-1])
            place += size
        # Sums differ by a machine's vectors, and all must go on with the same bits.
        if sides:
            group.broadcast(left[:place], 0)
        for (matrix, q), p in zip(sides, lefts, strict=True):
            q[...] = matrix.T @ p
        if sides:
            group.allreduce(right, "mean", weight=weight, label=f"right sides, {label}")
        for values in self._plain(arena, merged):
            values[...] = left[place : place + values.size]
            place += values.size
        for (matrix, q), p in zip(self._sides(arena, merged, right), lefts, strict=True):
            for column in range(self.rank):
                matrix += p[:, column, None] * q[:, column]
        if weight == 0:
            # Who gives nothing has nothing in what was merged.
            return merged, {"right": right}
        wanted -= merged
        # What goes as it is leaves nothing behind.
        for plain in self._plain(arena, wanted):
            plain[...] = 0
        return merged, {"right": right, "residual": wanted}

    def _goes_thin(self, view: Array) -> bool:
        """Whether two thin matrices have fewer numbers than this array."""
        if view.ndim < 2 or not view.size:
            return False
        rows = view.shape[0]
        return bool(self.rank * (rows + view.size // rows) < view.size)

    def _matrices(self, arena: Arena, flat: Array) -> list[Array]:
        """The arrays of a buffer that go as matrices."""
        views = arena.layout.views(flat).values()
        return [view.reshape(view.shape[0], -1) for view in views if self._goes_thin(view)]

    def _sides(self, arena: Arena, flat: Array, right: Array) -> Iterator[tuple[Array, Array]]:
        """Every matrix of a buffer with its Q."""
        place = 0
        for matrix in self._matrices(arena, flat):
            size = matrix.shape[1] * self.rank
            yield matrix, right[place : place + size].reshape(-1, self.rank)
            place += size

    def _plain(self, arena: Arena, flat: Array) -> list[Array]:
        """The arrays of a buffer that go as they are."""
        views = arena.layout.views(flat).values()
        return [view.reshape(-1) for view in views if not self._goes_thin(view)]


def _make_orthonormal(matrix: Array) -> None:
    """Gram and Schmidt's columns, in place; one that depends on those before it becomes 0."""
    for index in range(matrix.shape[1]):
        column = matrix[:, index].astype(np.float64)
        before = np.linalg.norm(column)
        for other in matrix[:, :index].T.astype(np.float64):
            column -= (other @ column) * other
        length = np.linalg.norm(column)
        depends = length <= 1e-6 * before
        matrix[:, index] = 0 if depends else column / length
