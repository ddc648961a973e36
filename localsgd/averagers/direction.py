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

    def __init__(
        self,
        schedule: Schedule,
        comm: Communicator | None = None,
        *,
        plain: Sequence[str] = (),
        outer: OuterOptimizer | None = None,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            comm: the workers that take part; None means ``localsgd.world()``.
            plain: the parameters that take the weighted mean; embeddings in the paper.
            outer: makes the parameters after a round of what was merged; None takes that.

        Raises:
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)
        self.plain = agreed_among(
            comm, "plain parameters", lambda: tuple(plain), lambda made: [repr(made)]
        )
        super().__init__(schedule, comm, outer=outer)
        self._references: list[Array] | None = None
        self._loaded: Sequence[Any] | None = None

    @property
    def begun(self) -> bool:
        return self._references is not None and super().begun

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
        self._references = [arena.flat.copy() for arena in arenas]
        if self._loaded is not None:
            self._take_over(self._loaded)
            self._loaded = None

    def state_dict(self) -> dict[str, Any]:
        kept = self._loaded
        if self._references is not None:
            kept = [reference.copy() for reference in self._references]
        return {**super().state_dict(), "references": kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping) or "references" not in state_dict:
            raise ValueError(
                f"a directional averager's state must have 'references', got {state_dict!r}"
            )
        saved = state_dict["references"]
        if saved is not None and self._references is not None:
            shapes = [reference.shape for reference in self._references]
            if [np.shape(values) for values in saved] != shapes:
                raise ValueError(
                    f"saved references must have shapes {shapes}, got "
                    f"{[np.shape(values) for values in saved]}"
                )
        super().load_state_dict(state_dict)
        if saved is not None and self._references is not None:
            self._take_over(saved)
        else:
            self._references, self._loaded = None, saved

    def _take_over(self, saved: Sequence[Any]) -> None:
        assert self._references is not None
        for mine, values in zip(self._references, saved, strict=True):
            mine[...] = values

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: Kind,
        step: int,
    ) -> bool:
        if self._references is None:
            raise ValueError("begin(params) must be called before the first local step, got none")
        before = [arena.flat.copy() for arena in arenas]
        try:
            if kind == "round" and step > self._outer.together:
                self._merge(arenas, group, step)
            held = super()._round(arenas, group, along, kind, step)
        except BaseException:
            for arena, values in zip(arenas, before, strict=True):
                arena.flat[...] = values
            raise
        if held:
            self._references = [arena.flat.copy() for arena in arenas]
        return held

    def _merge(self, arenas: Sequence[Arena], group: Communicator, step: int) -> None:
        """Moves all workers to where the merged move leads; nowhere if nobody weighs anything."""
        assert self._references is not None
        weight, traffic = self._weight(group, step), group.traffic
        merged = []
        for arena, reference in zip(arenas, self._references, strict=True):
            moved = (reference - arena.flat).astype(work_dtype(arena.dtype), copy=False)
            try:
                self._merge_moves(arena, moved, group, weight, f"moves after step {step}")
            except NoWeight:
                return
            merged.append(moved)
        for arena, reference, moved in zip(arenas, self._references, merged, strict=True):
            arena.flat[...] = reference - moved
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
