"""Rounds only where workers have moved far enough: divergence decides, not a count of steps.

Source: Kamp et al., Efficient decentralized deep learning by dynamic model averaging
(arXiv 1807.03210), the protocol with a fixed threshold and full synchronisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.averager import Kind, ModelAverager
from localsgd.averagers.companion import Companion
from localsgd.checks import agreed_among, checked_count, checked_number, workers_of
from localsgd.comm import NON_MEMBER, Codec, MismatchError
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.outer import OuterOptimizer
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
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when to look.
            threshold: of the squared norm, at least 0; 0 averages whenever someone has moved.
            comm: the workers that take part; None means ``localsgd.world()``.
            outer, compress, error_feedback: as in ``ModelAverager``.

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
            schedule, comm, outer=outer, compress=compress, error_feedback=error_feedback
        )
        self.looks = 0
        self._references: list[Array] | None = None
        self._loaded: Sequence[Any] | None = None

    @property
    def begun(self) -> bool:
        return self._references is not None and super().begun

    def begin(self, params: Arenas) -> None:
        if self.comm is NON_MEMBER:
            return
        super().begin(params)
        self._refer(as_arenas(params))
        if self._loaded is not None and self._references is not None:
            for mine, saved in zip(self._references, self._loaded, strict=True):
                mine[...] = saved
            self._loaded = None

    def state_dict(self) -> dict[str, Any]:
        kept = self._loaded
        if self._references is not None:
            kept = [reference.copy() for reference in self._references]
        return {**super().state_dict(), "references": kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping) or "references" not in state_dict:
            raise ValueError(
                f"a dynamic averager's state must have 'references', got {state_dict!r}"
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
            self._references = [np.array(values) for values in saved]
        else:
            self._references, self._loaded = None, saved

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
        if kind == "round" and step > self._outer.together and not self._too_far(arenas, step):
            return False
        held = super()._round(arenas, group, along, kind, step)
        if held:
            self._refer(arenas)
        return held

    def _too_far(self, arenas: Sequence[Arena], step: int) -> bool:
        """Whether a worker has gone too far, or holds what is no number. Collective."""
        assert self._references is not None
        moved = sum(
            _squared(arena.flat, reference)
            for arena, reference in zip(arenas, self._references, strict=True)
        )
        before = self.comm.traffic
        # A NaN is not within any bound.
        looked = _looks(self.comm.collect([step, not moved <= self.threshold]), step)
        self.traffic += self.comm.traffic - before
        self.looks += 1
        return any(looked)

    def _refer(self, arenas: Sequence[Arena]) -> None:
        self._references = [arena.flat.copy() for arena in arenas]


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
