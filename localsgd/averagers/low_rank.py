"""Rounds in which matrices travel as two thin ones: PowerSGD's compression of what workers moved.

Source: Vogels et al., PowerSGD (arXiv 1905.13727), Algorithm 1, with the residual of the authors'
code: against what all workers' matrices came to together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.averager import Kind, ModelAverager
from localsgd.averagers.companion import Companion, taking_part
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.kept import Kept
from localsgd.checks import agreed_among, checked_count, workers_of
from localsgd.comm import NON_MEMBER, NoWeight
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.schedules import Schedule


class LowRankAverager(ModelAverager):
    """Averages of every matrix M = residual + reference - params an approximation of low rank:

        P = mean(M Q)        P = its columns, orthonormal        Q = mean(Mᵀ P)
        residual = M - P Qᵀ        params = reference = reference - P Qᵀ

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
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            rank: of the approximation, at least 1; 1 to 4 in the paper.
            comm: the workers that take part; None means ``localsgd.world()``.
            seed: of the first Q.
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
        super().__init__(schedule, comm, guard=guard)
        self._kept = Kept("low rank")

    @property
    def begun(self) -> bool:
        """Whether there is a reference."""
        return self._kept.begun

    def begin(self, params: Arenas) -> None:
        """Takes the parameters, equal on all workers, for the reference, or what was loaded."""
        if self.comm is NON_MEMBER:
            return
        random = np.random.Generator(np.random.Philox(self._seed))
        arrays = []
        for arena in as_arenas(params):
            wide = arena.flat.astype(work_dtype(arena.dtype))
            width = sum(matrix.shape[1] for matrix in self._matrices(arena, wide))
            # Whole numbers, which every version draws alike, and no zeros.
            right = 1.0 + random.integers(0, 1 << 16, self.rank * width) / (1 << 15)
            right[random.integers(0, 2, right.size) == 1] *= -1
            arrays.append(
                {
                    "reference": wide,
                    "residual": np.zeros_like(wide),
                    "right": right.astype(wide.dtype),
                }
            )
        self._kept.begin(arrays)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._kept.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept.check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        self._kept.load_state_dict(state_dict)

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: Kind,
        step: int,
    ) -> bool:
        self._kept.require_begun()
        if step <= self._outer.together:
            held = super()._round(arenas, group, along, kind, step)
            for kept, arena in zip(self._kept.arrays, arenas, strict=True):
                kept["reference"][...] = arena.flat
            return held
        along = taking_part(along, kind, step)
        before, weight = group.traffic, self._weight(group, step)
        self._watch.left_out = False
        label = ", ".join([f"{kind} after step {step}", *(entry.words for entry in along)])
        weight = self._watch.look(group, arenas, weight, label)
        for companion in along:
            companion.ready(group, weight)
        found = []
        try:
            for arena, kept in zip(arenas, self._kept.arrays, strict=True):
                found.append(self._merged(arena, kept, group, weight, label))
        except NoWeight:
            if self._may_be_without_weight(group):
                return False
            raise
        for arena, kept, (wanted, merged, right) in zip(
            arenas, self._kept.arrays, found, strict=True
        ):
            # Who gives nothing has nothing in what was merged.
            if weight != 0:
                np.subtract(wanted, merged, out=kept["residual"])
                # What goes as it is leaves nothing behind.
                for plain in self._plain(arena, kept["residual"]):
                    plain[...] = 0
            kept["right"][...] = right
            kept["reference"] -= merged
            arena.flat[...] = kept["reference"]
        for companion in along:
            companion.join(group, weight)
        self._decide(group, kind, step)
        self._ledger.settle(0, step)
        self.rounds += 1
        self.traffic += group.traffic - before
        self._watch.verify(group, arenas, kind, step)
        return True

    def _merged(
        self,
        arena: Arena,
        kept: Mapping[str, Array],
        group: Communicator,
        weight: float | None,
        label: str,
    ) -> tuple[Array, Array, Array]:
        """What this worker wants to move, what all move, and the next Q of every matrix."""
        wanted = kept["residual"] + (kept["reference"] - arena.flat)
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
        return wanted, merged, right

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
