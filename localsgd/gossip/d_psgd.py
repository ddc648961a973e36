"""The base of averagers that mix with neighbours, and the plain one.

Source: Lian et al., Can decentralized algorithms outperform centralized algorithms? D-PSGD
(arXiv 1705.09056).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from localsgd.arrays import Arena, Arenas
from localsgd.averagers import Companion, Kind, ModelAverager
from localsgd.checks import agreed_among, checked_count, workers_of
from localsgd.comm import NON_MEMBER
from localsgd.comm.changes import Change
from localsgd.comm.contract import Communicator
from localsgd.comm.dtypes import all_finite
from localsgd.gossip.graphs import Graph, check_stochastic
from localsgd.gossip.neighbours import Neighbours, Parts, weighted_mean
from localsgd.schedules import DecidingSchedule, Schedule


class Gossip(ModelAverager):
    """In a round each worker mixes with its neighbours alone, so workers are not equal after it.

    One that holds NaN or infinity is an error on it and its neighbours, who stay as they are.
    ``flush``, ``mean_of`` and synchronous steps at first are of all workers and exact. Workers
    weigh by the graph, not by samples. Nothing is averaged along with a round of gossip.

    Attributes:
        graph: the mixing weights.
        mixed: how many rounds of gossip there were.
    """

    # Whether rows of the matrix must sum to 1, too.
    _doubly = True
    _equal = _leaves_out = False

    def __init__(self, schedule: Schedule, graph: Graph, comm: Communicator | None = None) -> None:
        """Collective: schedule and graph must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            graph: of ``localsgd.gossip``.
            comm: the workers that take part; None means ``localsgd.world()``.

        Raises:
            TypeError: for what is no graph, and for schedules that decide from reports of all.
            ValueError: if the graph has no weights for so many workers, or its matrix does not sum
                to 1: by rows and columns; by columns for ``PushSumAverager``.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> Graph:
            if not isinstance(graph, Graph):
                raise TypeError(f"graph must be one of localsgd.gossip, got {graph!r}")
            if isinstance(schedule, DecidingSchedule):
                raise TypeError(f"gossip must have a schedule of fixed steps, got {schedule!r}")
            if comm is not NON_MEMBER:
                check_stochastic(graph.matrix(comm.size), rows=self._doubly)
            return graph

        self.graph = agreed_among(comm, "graphs", prepare, lambda made: [repr(made)])
        super().__init__(schedule, comm)
        self.mixed = 0

    def words(self) -> list[str]:
        return [*super().words(), f"graph {self.graph!r}"]

    def regroup(self, params: Arenas, change: Change, begun: int) -> None:
        """Takes the graph for those that are there now, who keep what they have. Collective.

        Who is new counts as the worker does whose state it has.

        Raises:
            ValueError: if the graph has no weights for so many workers; on every rank.
        """
        super().regroup(params, change, begun)
        size = self.comm.size
        try:
            check_stochastic(self.graph.matrix(size), rows=self._doubly)
        except ValueError as error:
            raise ValueError(
                f"gossip must have a graph for {size} workers, who were "
                f"{change.before.size}, got {self.graph!r}: {error}"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mixed": self.mixed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping) or "mixed" not in state_dict:
            raise ValueError(f"the state of gossip must have 'mixed', got {state_dict!r}")
        mixed = checked_count("mixed", state_dict["mixed"], at_least=0)
        super().load_state_dict(state_dict)
        self.mixed = mixed

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: Kind,
        step: int,
    ) -> bool:
        if kind == "flush" or step <= self._outer.together:
            held = super()._round(arenas, group, along, kind, step)
            self._all_equal(arenas)
            return held
        if along:
            raise ValueError(
                "in rounds of gossip nothing may be averaged along, got "
                f"{', '.join(entry.words for entry in along)}"
            )
        if self._weight(group, step) is not None:
            raise ValueError("in gossip workers must weigh by the graph, got samples of their own")
        before = group.traffic
        neighbours = Neighbours(group, self.graph.matrix(group.size, self.mixed))
        layouts = [(arena.names, arena.flat.size, arena.dtype.name) for arena in arenas]
        words = f"{self!r} of {layouts} in round {self.mixed}"
        lost = not all(all_finite(arena.flat) for arena in arenas)
        trouble = neighbours.compare(words, step, lost=lost)
        if trouble is not None:
            self._serve(arenas, neighbours)
            raise trouble
        for index, arena in enumerate(arenas):
            self._mix(index, arena, neighbours)
        self.mixed += 1
        self._ledger.settle(0, step)
        self._count_round(arenas, group, kind, step, group.traffic - before)
        return True

    def _serve(self, arenas: Sequence[Arena], neighbours: Neighbours) -> None:
        """Gives the neighbours who wait for it what they need, and changes nothing."""
        state, values = self.state_dict(), [arena.flat.copy() for arena in arenas]
        try:
            for index, arena in enumerate(arenas):
                self._mix(index, arena, neighbours)
        finally:
            for arena, before in zip(arenas, values, strict=True):
                arena.flat[...] = before
            self.load_state_dict(state)

    def _all_equal(self, arenas: Sequence[Arena]) -> None:
        """Takes note that a round of all workers was held."""

    @abstractmethod
    def _mix(self, index: int, arena: Arena, neighbours: Neighbours) -> None:
        """Mixes arena number ``index`` with those of the neighbours."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r}, {self.graph!r})"


class GossipAverager(Gossip):
    """Every worker takes the weighted mean of itself and its neighbours (D-PSGD).

        x_i = Σ_j w_ij x_j

    The mean of all workers stays, to rounding. With the graph in which all weigh 1/n it is the
    group's own mean, on one host to the bit.
    """

    def _mix(self, index: int, arena: Arena, neighbours: Neighbours) -> None:
        flat = arena.flat

        def use(place: slice, parts: Sequence[Parts]) -> None:
            flat[place] = weighted_mean(parts[0], neighbours.weights)

        neighbours.each_window([flat], use)
