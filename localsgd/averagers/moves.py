"""The base of averagers that merge what workers have moved by a rule of their own.

Every rank ends a round with all of what was merged. So each keeps the whole anchor and takes the
outer step of the whole model itself, and an outer optimizer costs memory but sends nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.agreeing import agreed_outer
from localsgd.averagers.anchor import step_whole
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.companion import Companion, taking_part
from localsgd.averagers.guard import Guard
from localsgd.averagers.kept import Kept
from localsgd.averagers.observing import Kind
from localsgd.comm import NON_MEMBER, NoWeight
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates
from localsgd.schedules import Schedule

# How far all move, equal on every rank, and what this rank keeps afterwards, by name.
Merged: TypeAlias = "tuple[Array, Mapping[str, Array]]"


class MovesAverager(ModelAverager):
    """Rounds of all workers from an anchor that each of them holds:

        delta  = merged from anchor - params of all workers
        params = anchor = outer(anchor, delta)            without an outer optimizer: anchor - delta

    Rounds in which workers still train synchronously take the mean, which is the anchor then. A
    flush is a round. A subclass says what it keeps and how it merges.
    """

    def __init__(
        self,
        schedule: Schedule,
        comm: Communicator,
        key: str,
        *,
        outer: OuterOptimizer | None,
        guard: Guard | None,
    ) -> None:
        """Collective, as ``ModelAverager``.

        Args:
            key: of what is kept, in the averager's state.
            guard: looks before a round.
        """
        super().__init__(schedule, comm, guard=guard)
        self._whole = agreed_outer(comm, outer)
        self._kept = Kept(key)

    @property
    def outer(self) -> OuterOptimizer | None:
        """What makes the parameters after a round; None for the anchor less the delta."""
        return self._whole

    @property
    def begun(self) -> bool:
        """Whether there is an anchor."""
        return self._kept.begun

    def begin(self, params: Arenas) -> None:
        """Takes the parameters, equal on all workers, for the anchor, or what was loaded.

        Collective.

        Raises:
            TypeError, ValueError, MismatchError: if the averager cannot carry them.
        """
        if self.comm is NON_MEMBER:
            return
        arenas = as_arenas(params)
        self._check(arenas)
        found = []
        for arena in arenas:
            anchor = arena.flat.astype(work_dtype(arena.dtype))
            kept = {"anchor": anchor, **self._beside(arena, anchor)}
            if self.outer is not None:
                kept["outer steps"] = np.zeros((), np.int64)
                kept.update({key: np.zeros_like(anchor) for key in self.outer.kept})
            found.append(kept)
        self._kept.begin(found)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._kept.state_dict()}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        return {**super().resized_state(saved), **self._kept.resized_state(saved)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept.check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        self._kept.load_state_dict(state_dict)

    def take_over(self, state: Mapping[str, Any]) -> None:
        super().take_over(state)
        # What another worker has yet to send is no business of this one.
        for kept in self._kept.arrays:
            for name in {"unsent", "residual"} & set(kept):
                kept[name][...] = 0

    def _check(self, arenas: Sequence[Arena]) -> None:
        """Raises on every rank if a round cannot carry these parameters. Collective."""

    def _beside(self, arena: Arena, anchor: Array) -> dict[str, Array]:
        """What is kept of an arena beside its anchor, as it is at first."""
        return {}

    @abstractmethod
    def _merge(
        self,
        index: int,
        arena: Arena,
        kept: Mapping[str, Array],
        group: Communicator,
        weight: float | None,
        label: str,
    ) -> Merged:
        """Merges what workers have moved of arena number ``index``; changes nothing. Collective.

        Raises:
            NoWeight: on every rank, if nobody weighs anything.
        """

    def _ends_synchrony(self, step: int) -> bool:
        return step == self._outer.together > 0

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
                kept["anchor"][...] = arena.flat
            return held
        self._watch.left_out = False
        along = taking_part(along, kind, step)
        before, weight = group.traffic, self._weight(group, step)
        words = "" if self.outer is None else self.outer.begin_round()
        parts = [f"{kind} after step {step}", words, *(entry.words for entry in along)]
        label = ", ".join(part for part in parts if part)
        weight = self._watch.look(group, arenas, weight, label)
        for companion in along:
            companion.ready(group, weight)
        merged = []
        try:
            for index, (arena, kept) in enumerate(zip(arenas, self._kept.arrays, strict=True)):
                merged.append(self._merge(index, arena, kept, group, weight, label))
        except NoWeight:
            if self._may_be_without_weight(group):
                return False
            raise
        for arena, kept, (moved, later) in zip(arenas, self._kept.arrays, merged, strict=True):
            for name, values in later.items():
                kept[name][...] = values
            if self.outer is None:
                kept["anchor"] -= moved
            else:
                kept["outer steps"] += 1
                step_whole(self.outer, kept, moved, int(kept["outer steps"]))
            arena.flat[...] = kept["anchor"]
        for companion in along:
            companion.join(group, weight)
        self._decide(group, kind, step)
        self._ledger.settle(0, step)
        self._count_round(arenas, group, kind, step, group.traffic - before)
        self._watch.verify(group, arenas, kind, step)
        return True
