"""Stochastic gradient push: mixing on directed graphs whose columns sum to 1.

Source: Assran et al., Stochastic Gradient Push (arXiv 1811.10792), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers import Companion, Kept, Kind
from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.gossip.d_psgd import Gossip
from localsgd.gossip.neighbours import Neighbours, Parts, weighted_sum
from localsgd.resizing import SavedStates


class PushSumAverager(Gossip):
    """Every worker keeps a numerator x and a weight w; its parameters are z = x / w.

        x_i = Σ_j p_ij x_j        w_i = Σ_j p_ij w_j        z_i = x_i / w_i

    Local steps change the parameters, and what they have moved since the last round is added to x
    before it is mixed, as the method does. The sums of x and of w stay, to rounding, so that all z
    go to the mean. ``flush`` and ``mean_of`` take the sum of x by that of w, which is the number of
    workers, until some are lost, whose numerators and weights are lost with them.

    Attributes:
        weight: this worker's w; 1 at first.
    """

    _doubly = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Collective; arguments and errors as in ``Gossip``."""
        super().__init__(*args, **kwargs)
        self.weight = self._next = 1.0
        self._kept = Kept("numerators")

    @property
    def begun(self) -> bool:
        """Whether there are numerators."""
        return self._kept.begun

    def begin(self, params: Arenas) -> None:
        """Takes the parameters for the numerators, or what was loaded. Not collective."""
        if self.comm is NON_MEMBER:
            return
        self._kept.begin(
            [
                {"numerator": arena.flat.astype(work_dtype(arena.dtype))}
                for arena in as_arenas(params)
            ]
        )

    def mean_of(self, params: Arenas) -> dict[str, Array]:
        """The mean of the numerators with what local steps have moved; collective."""
        found: dict[str, Array] = {}
        for index, arena in enumerate(as_arenas(params)):
            flat = arena.flat.copy()
            if self.comm is not NON_MEMBER:
                if not self.begun:
                    self.begin(params)
                flat[...] = self._moved(index, arena) / self._share(flat.dtype)
                self.comm.allreduce(flat, "mean")
            found.update(arena.layout.views(flat))
        return found

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weight": self.weight, **self._kept.state_dict()}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """As of all averagers; from the mean all go on with weight 1."""
        kept = self._kept.resized_state(saved)
        weight = {} if saved.same_size else {"weight": 1.0}
        return {**super().resized_state(saved), **weight, **kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping) or "weight" not in state_dict:
            raise ValueError(f"the state of push-sum must have 'weight', got {state_dict!r}")
        weight = float(state_dict["weight"])
        if not weight > 0:
            raise ValueError(f"weight must be above 0, got {weight}")
        self._kept.check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        self.weight = self._next = weight
        self._kept.load_state_dict(state_dict)

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: Kind,
        step: int,
    ) -> bool:
        if not self.begun:
            self.begin(arenas)
        if kind == "flush":
            # A plain mean is then the sum of the numerators by that of the weights.
            for index, arena in enumerate(arenas):
                arena.flat[...] = self._moved(index, arena) / self._share(arena.flat.dtype)
        held = super()._round(arenas, group, along, kind, step)
        self.weight = self._next
        return held

    def _all_equal(self, arenas: Sequence[Arena]) -> None:
        self._next = 1.0
        for kept, arena in zip(self._kept.arrays, arenas, strict=True):
            kept["numerator"][...] = arena.flat

    def _mix(self, index: int, arena: Arena, neighbours: Neighbours) -> None:
        flat, numerator = arena.flat, self._kept.arrays[index]["numerator"]
        numerator[...] = self._moved(index, arena)
        if index == 0:
            weights = neighbours.gather(np.array([self.weight]))
            self._next = float(weighted_sum(weights, neighbours.weights)[0])

        def use(place: slice, parts: Sequence[Parts]) -> None:
            mixed = weighted_sum(parts[0], neighbours.weights)
            numerator[place] = mixed
            flat[place] = mixed / mixed.dtype.type(self._next)

        neighbours.each_window([numerator], use)

    def _share(self, dtype: np.dtype[Any]) -> Any:
        """The mean of all workers' weights, 1 as long as none was lost. Collective."""
        weights = self.comm.collect(self.weight)
        return work_dtype(dtype).type(sum(weights) / len(weights))

    def _moved(self, index: int, arena: Arena) -> Array:
        """The numerator, with what the parameters have moved since the last round."""
        numerator = self._kept.arrays[index]["numerator"]
        if self.weight == 1:
            return arena.flat.astype(numerator.dtype)
        moved: Array = numerator + (arena.flat - numerator / numerator.dtype.type(self.weight))
        return moved
