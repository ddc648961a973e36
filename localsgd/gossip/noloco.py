"""NoLoCo: an outer step with one other worker at a time, and no round of all.

Source: Kolehmainen et al., NoLoCo (arXiv 2506.10911), with its code's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers import Kept
from localsgd.checks import agreed_among, checked_number, workers_of
from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.gossip.d_psgd import Gossip
from localsgd.gossip.graphs import random_pairs
from localsgd.gossip.neighbours import Neighbours, Parts, weighted_mean
from localsgd.resizing import SavedStates
from localsgd.schedules import Schedule


class NoLoCoAverager(Gossip):
    """Every worker keeps slow weights phi and a momentum m; of pairs drawn anew in every round

        m_i   = mu m_i + nu mean(theta_j - phi_j) + gamma (mean(phi_j) - phi_i)
        phi_i = phi_i + m_i        theta_i = phi_i

    with the means over the pair. ``flush`` gives all the mean of theta, for phi, too; momenta stay.

    Attributes:
        lr, momentum, pull: nu, mu and gamma.
    """

    def __init__(
        self,
        schedule: Schedule,
        comm: Communicator | None = None,
        *,
        lr: float = 0.7,
        momentum: float = 0.5,
        pull: float = 0.7,
        seed: int = 0,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due; every 50 steps in the authors' code.
            comm: the workers that take part; None means ``localsgd.world()``.
            lr: how far to go where the pair has moved, at least 0.
            momentum: in [0, 1).
            pull: how far to go to the pair's slow weights, at least 0.
            seed: of the pairs.

        Raises:
            TypeError, ValueError: for a number out of its range.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> tuple[float, float, float]:
            return (
                checked_number("lr", lr),
                checked_number("momentum", momentum, below=1.0),
                checked_number("pull", pull),
            )

        numbers = agreed_among(comm, "numbers of NoLoCo", prepare, lambda made: [repr(made)])
        self.lr, self.momentum, self.pull = numbers
        super().__init__(schedule, random_pairs(seed), comm)
        self._kept = Kept("slow weights")

    @property
    def begun(self) -> bool:
        """Whether there are slow weights."""
        return self._kept.begun

    def begin(self, params: Arenas) -> None:
        """Takes the parameters for the slow weights, or what was loaded. Not collective."""
        if self.comm is NON_MEMBER:
            return
        slow = [arena.flat.astype(work_dtype(arena.dtype)) for arena in as_arenas(params)]
        self._kept.begin([{"slow": values, "momentum": np.zeros_like(values)} for values in slow])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._kept.state_dict()}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        return {**super().resized_state(saved), **self._kept.resized_state(saved)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept.check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        self._kept.load_state_dict(state_dict)

    def _all_equal(self, arenas: Sequence[Arena]) -> None:
        if not self.begun:
            self.begin(arenas)
        for kept, arena in zip(self._kept.arrays, arenas, strict=True):
            kept["slow"][...] = arena.flat

    def _mix(self, index: int, arena: Arena, neighbours: Neighbours) -> None:
        self._kept.require_begun()
        slow, momenta = (self._kept.arrays[index][name] for name in ("slow", "momentum"))
        flat = arena.flat
        number = slow.dtype.type
        moved = flat - slow

        def use(place: slice, parts: Sequence[Parts]) -> None:
            moves, slows = (weighted_mean(part, neighbours.weights) for part in parts)
            momentum, own = momenta[place], slow[place]
            momentum *= number(self.momentum)
            momentum += number(self.lr) * moves
            momentum += number(self.pull) * (slows - own)
            own += momentum
            flat[place] = own

        neighbours.each_window([moved, slow], use)
