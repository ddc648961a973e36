"""Rounds only where workers have moved far enough: divergence decides, not a count of steps.

Source: Kamp et al., Efficient decentralized deep learning by dynamic model averaging
(arXiv 1807.03210), the protocol with a fixed threshold and full synchronisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.companion import Companion
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.kept import Kept
from localsgd.averagers.observing import Kind
from localsgd.checks import agreed_among, checked_count, checked_number, workers_of
from localsgd.comm import NON_MEMBER, Codec, MismatchError
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates
from localsgd.schedules import Schedule


class DynamicAverager(ModelAverager):
    """Whenever ``schedule`` says so the workers look, and average if one of them has gone too far:

        ‖params - reference‖² > threshold

    in the Euclidean norm over all parameters, where the reference is where the last round ended.
    Looking sends a few bytes; a worker keeps one copy of the parameters more.

    Attributes:
        threshold: of the squared norm.
        looks: how often the workers looked since this averager was made.
    """

    def __init__(
        self,
        schedule: Schedule,
        threshold: float,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when to look.
            threshold: of the squared norm, at least 0; 0 averages whenever someone has moved.
            comm: the workers that take part; None means ``localsgd.world()``.
            outer, compress, error_feedback, guard: as in ``ModelAverager``.

        Raises:
            TypeError, ValueError: for a threshold that is no number, or below 0.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)
        self.threshold = agreed_among(
            comm,
            "thresholds",
            lambda: checked_number("threshold", threshold),
            lambda made: [repr(made)],
        )
        super().__init__(
            schedule,
            comm,
            outer=outer,
            compress=compress,
            error_feedback=error_feedback,
            guard=guard,
        )
        self.looks = 0
        self._kept = Kept("references")

    @property
    def begun(self) -> bool:
        return self._kept.begun and super().begun

    def begin(self, params: Arenas) -> None:
        if self.comm is NON_MEMBER:
            return
        super().begin(params)
        self._kept.begin([{"reference": arena.flat.copy()} for arena in as_arenas(params)])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._kept.state_dict()}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        return {**super().resized_state(saved), **self._kept.resized_state(saved)}

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
        if kind == "round" and step > self._outer.together and not self._too_far(arenas, step):
            return False
        held = super()._round(arenas, group, along, kind, step)
        if held:
            for kept, arena in zip(self._kept.arrays, arenas, strict=True):
                kept["reference"][...] = arena.flat
        return held

    def _too_far(self, arenas: Sequence[Arena], step: int) -> bool:
        """Whether a worker has gone too far, or holds what is no number. Collective."""
        moved = sum(
            _squared(arena.flat, kept["reference"])
            for arena, kept in zip(arenas, self._kept.arrays, strict=True)
        )
        before = self.comm.traffic
        # A NaN is not within any bound.
        looked = _looks(self.comm.collect([step, not moved <= self.threshold]), step)
        self.traffic += self.comm.traffic - before
        self.looks += 1
        return any(looked)


def _looks(reports: Sequence[Any], step: int) -> list[bool]:
    """What the workers have seen, if all stand at the same step.

    Raises:
        MismatchError: if they do not.
    """
    for rank, (theirs, _) in enumerate(reports):
        if checked_count("step", theirs, at_least=0) != step:
            raise MismatchError(
                f"workers must look after the same step, got {step} here and {theirs} on rank "
                f"{rank}"
            )
    return [bool(seen) for _, seen in reports]


def _squared(values: Array, reference: Array) -> float:
    """The squared norm of a difference, in float64, a block at a time."""
    wide, total = work_dtype(values.dtype), 0.0
    for start in range(0, values.size, 65_536):
        place = slice(start, start + 65_536)
        moved = values[place].astype(wide) - reference[place]
        total += float(np.square(moved, dtype=np.float64).sum())
    return total
