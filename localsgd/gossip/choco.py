"""CHOCO-SGD: gossip of compressed differences to copies that neighbours have alike.

Source: Koloskova, Stich and Jaggi, Decentralized stochastic optimization and gossip algorithms with
compressed communication (arXiv 1902.00340), in the order of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers import Kept, checked_codec, require_carried
from localsgd.checks import agreed_among, checked_number, workers_of
from localsgd.comm import NON_MEMBER
from localsgd.comm.changes import Change
from localsgd.comm.codecs import Codec, keyed_at
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.gossip.d_psgd import Gossip
from localsgd.gossip.graphs import Graph
from localsgd.gossip.neighbours import Neighbours, Parts, weighted_mean
from localsgd.resizing import SavedStates
from localsgd.schedules import Schedule


class ChocoAverager(Gossip):
    """Every worker has a public copy x̂ of itself, which its neighbours follow by what it sends.

        x_i = x_i + gamma Σ_j w_ij (x̂_j - x̂_i)        q_i = C(x_i - x̂_i)        x̂_i = x̂_i + q_i

    Of the neighbours' copies only s_i = Σ_j w_ij x̂_j is kept. Nothing that a codec loses is lost
    for good: the next difference has it. ``flush`` gives all the mean; copies stay as they are.

    Attributes:
        codec, gamma: how differences are sent, and the size of a step to the neighbours' copies.
    """

    def __init__(
        self,
        schedule: Schedule,
        graph: Graph,
        codec: Codec,
        gamma: float,
        comm: Communicator | None = None,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            graph: the same in every round (``period`` 1), doubly stochastic.
            codec: of ``localsgd.codecs``.
            gamma: above 0 and at most 1; the less the codec keeps, the smaller. The paper has 0.04
                for the top 1 % and 0.34 for 16 levels.
            comm: the workers that take part; None means ``localsgd.world()``.

        Raises:
            TypeError, ValueError: for anything else.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> list[str]:
            checked_codec(codec)
            if not 0 < checked_number("gamma", gamma) <= 1:
                raise ValueError(f"gamma must be above 0 and at most 1, got {gamma}")
            if isinstance(graph, Graph) and graph.period != 1:
                raise ValueError(f"graph must be the same in every round, got {graph!r}")
            return [codec.name, repr(float(gamma))]

        agreed_among(comm, "codecs", prepare, lambda words: words)
        self.codec, self.gamma = codec, float(gamma)
        super().__init__(schedule, graph, comm)
        self._kept = Kept("copies")

    @property
    def begun(self) -> bool:
        """Whether there are public copies."""
        return self._kept.begun

    def begin(self, params: Arenas) -> None:
        """Takes the parameters, equal on all workers, for the public copies, or what was loaded.

        Raises:
            TypeError, ValueError, MismatchError: if the codec cannot carry them. Collective.
        """
        if self.comm is NON_MEMBER:
            return
        arenas = as_arenas(params)
        require_carried(self.comm, self.codec, arenas)
        copies = [arena.flat.astype(work_dtype(arena.dtype)) for arena in arenas]
        self._kept.begin([{"public": copy, "sum": copy.copy()} for copy in copies])

    def regroup(self, params: Arenas, change: Change, begun: int) -> None:
        """As ``Gossip.regroup``; neighbours tell each other their public copies, as they are."""
        super().regroup(params, change, begun)
        neighbours = Neighbours(self.comm, self.graph.matrix(self.comm.size))
        for kept in self._kept.arrays:
            sums = kept["sum"]

            def use(place: slice, parts: Sequence[Parts], sums: Array = sums) -> None:
                sums[place] = weighted_mean(parts[0], neighbours.weights)

            neighbours.each_window([kept["public"]], use)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._kept.state_dict()}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """As of all averagers; where copies become their mean, so do the sums of neighbours'."""
        kept = self._kept.resized_state(saved)
        if not saved.same_size and kept[self._kept.key] is not None:
            for arrays in kept[self._kept.key]:
                arrays["sum"] = arrays["public"].copy()
        return {**super().resized_state(saved), **kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept.check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        self._kept.load_state_dict(state_dict)

    def _mix(self, index: int, arena: Arena, neighbours: Neighbours) -> None:
        self._kept.require_begun()
        public, sums = (self._kept.arrays[index][name] for name in ("public", "sum"))
        wide = arena.flat.astype(public.dtype)
        wide += public.dtype.type(self.gamma) * (sums - public)
        arena.flat[...] = wide
        codec = keyed_at(self.codec, self.comm.rank, self.mixed, index)
        message = np.empty(codec.encoded_bytes(wide.size), np.uint8)
        codec.encode(arena.flat - public, message)
        moved = np.empty_like(public)
        for rank, theirs in neighbours.gather(message).items():
            codec.decode(theirs, moved)
            sums += moved * public.dtype.type(neighbours.weights.get(rank, 0.0))
            if rank == self.comm.rank:
                public += moved
