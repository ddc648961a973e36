"""A mean that keeps lengths: of every tensor the workers' directions are averaged, and their norms.

Source: Decoupled DiLoCo (arXiv 2604.21428), radial-directional averaging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.averager import Kind, ModelAverager
from localsgd.averagers.companion import Companion
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.kept import Kept
from localsgd.checks import agreed_among, workers_of
from localsgd.comm import NON_MEMBER, NoWeight
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.outer import OuterOptimizer
from localsgd.schedules import Schedule


class DirectionalAverager(ModelAverager):
    """Merges what workers have moved, v = reference - params, tensor by tensor:

        v = (Σ w |v| / Σ w) · φ(Σ w φ(v) / Σ w)        φ(x) = x / |x|,  φ(0) = 0

    where a plain mean of M orthogonal moves of length R has the length R / sqrt(M), this has R.
    Where the directions cancel to 0, and for tensors named in ``plain``, it is the weighted mean.
    The reference is where the last round ended, of which each worker keeps a copy.

    A round sends twice what a mean does: what was moved, and then the parameters, equal on all by
    then, for an outer optimizer to step by shards with v for its delta.
    """

    _leaves_out = False

    def __init__(
        self,
        schedule: Schedule,
        comm: Communicator | None = None,
        *,
        plain: Sequence[str] = (),
        outer: OuterOptimizer | None = None,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            comm: the workers that take part; None means ``localsgd.world()``.
            plain: the parameters that take the weighted mean; embeddings in the paper.
            outer: makes the parameters after a round of what was merged; None takes that.
            guard: as in ``ModelAverager``, but that it leaves out nobody; it looks before a round.

        Raises:
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)
        self.plain = agreed_among(
            comm, "plain parameters", lambda: tuple(plain), lambda made: [repr(made)]
        )
        super().__init__(schedule, comm, outer=outer, guard=guard)
        self._kept = Kept("references")

    @property
    def begun(self) -> bool:
        return self._kept.begun and super().begun

    def begin(self, params: Arenas) -> None:
        """As ``ModelAverager.begin``.

        Raises:
            ValueError: if a parameter of ``plain`` is none of these.
        """
        if self.comm is NON_MEMBER:
            return
        arenas = as_arenas(params)
        unknown = set(self.plain).difference(*(arena.names for arena in arenas))
        if unknown:
            raise ValueError(f"plain must name parameters, got {sorted(unknown)} that are none")
        super().begin(arenas)
        self._kept.begin([{"reference": arena.flat.copy()} for arena in arenas])

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
        before = [arena.flat.copy() for arena in arenas]
        try:
            if kind == "round" and step > self._outer.together:
                label = f"{kind} after step {step}"
                self._watch.look(group, arenas, self._weight(group, step), label)
                self._merge(arenas, group, step)
            held = super()._round(arenas, group, along, kind, step)
        except BaseException:
            for arena, values in zip(arenas, before, strict=True):
                arena.flat[...] = values
            raise
        if held:
            for kept, arena in zip(self._kept.arrays, arenas, strict=True):
                kept["reference"][...] = arena.flat
        return held

    def _merge(self, arenas: Sequence[Arena], group: Communicator, step: int) -> None:
        """Moves all workers to where the merged move leads; nowhere if nobody weighs anything."""
        weight, traffic = self._weight(group, step), group.traffic
        merged = []
        for arena, kept in zip(arenas, self._kept.arrays, strict=True):
            moved = (kept["reference"] - arena.flat).astype(work_dtype(arena.dtype), copy=False)
            try:
                self._merge_moves(arena, moved, group, weight, f"moves after step {step}")
            except NoWeight:
                return
            merged.append(moved)
        for arena, kept, moved in zip(arenas, self._kept.arrays, merged, strict=True):
            arena.flat[...] = kept["reference"] - moved
        self.traffic += group.traffic - traffic

    def _merge_moves(
        self, arena: Arena, moved: Array, group: Communicator, weight: float | None, label: str
    ) -> None:
        """Makes of what a worker has moved what all have, in place."""
        own = moved.copy()
        tensors = {
            name: view.reshape(-1)
            for name, view in arena.layout.views(moved).items()
            if name not in self.plain
        }
        norms = np.array([_norm(tensor) for tensor in tensors.values()])
        for tensor, norm in zip(tensors.values(), norms, strict=True):
            if norm:
                tensor /= tensor.dtype.type(norm)
        group.allreduce(moved, "mean", weight=weight, label=label)
        if not tensors:
            return
        group.allreduce(norms, "mean", weight=weight, label=f"norms of {label}")
        means: Mapping[str, Array] | None = None
        for (name, tensor), norm in zip(tensors.items(), norms, strict=True):
            length = _norm(tensor)
            if length:
                tensor *= tensor.dtype.type(norm / length)
            elif norm:
                if means is None:
                    group.allreduce(own, "mean", weight=weight, label=f"plain {label}")
                    means = arena.layout.views(own)
                tensor[...] = means[name].reshape(-1)


def _norm(values: Array) -> float:
    """The Euclidean norm, in float64, so that every rank's is the same for the same bits."""
    return float(np.sqrt(np.square(values, dtype=np.float64).sum()))
