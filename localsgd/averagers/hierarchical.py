"""Rounds of growing groups: few workers often, all of them rarely.

A level is a period and a group size; a round is one level's. Where several levels are due the
largest group wins, whatever the order in which they were written.

Sources: Lin et al., post-local SGD (arXiv 1808.07217), section 5; steps, warm-up and groups of
consecutive ranks as torch.distributed.algorithms.model_averaging (PyTorch 2.13).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from localsgd.arrays import Arenas
from localsgd.averagers.agreeing import agreed_schedule
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.ledger import Ledger
from localsgd.checks import caller_level, checked_count, workers_of
from localsgd.comm import NON_MEMBER, Codec
from localsgd.comm.changes import Change
from localsgd.comm.contract import Communicator
from localsgd.comm.topology import Topology
from localsgd.outer import OuterOptimizer

GroupSize: TypeAlias = "int | Literal['host', 'world']"


@dataclass(frozen=True)
class Hierarchy:
    """Levels as a schedule: due when one of them is.

    Attributes:
        levels: for every level its period and group size, the largest group first.
        warmup_steps: steps before the first round of any level.
    """

    levels: tuple[tuple[int, GroupSize], ...]
    warmup_steps: int

    def due(self, step: int) -> bool:
        return self.level_due(step) is not None

    def level_due(self, step: int) -> int | None:
        """The number of the level whose round follows this step; None if none does.

        Each level has the phase of ``aligned``, written out since every step asks.
        """
        before = step - 1
        if before >= self.warmup_steps:
            for index, (period, _) in enumerate(self.levels):
                if before % period == 0:
                    return index
        return None

    def __repr__(self) -> str:
        levels = ", ".join(f"{period}: {size!r}" for period, size in reversed(self.levels))
        return f"hierarchy({{{levels}}}, warmup_steps={self.warmup_steps})"


class HierarchicalModelAverager(ModelAverager):
    """Averages in groups: after step 1+k a level with a period that divides k holds its round.

    At most one level a step, and none while k is less than the warm-up. The periods count
    from the start of training, so warm-up does not shift them.

    Attributes:
        period_group_size_dict: the levels, the smallest group first.
        warmup_steps: steps before the first round.
    """

    def __init__(
        self,
        period_group_size_dict: Mapping[int, GroupSize] | None = None,
        warmup_steps: int = 0,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: checks everything, agrees on it, then makes the groups.

        Args:
            period_group_size_dict: the group size for every period, in any order. A size of n
                means blocks of n consecutive ranks; ``"host"`` the ranks of each host, however
                many; ``"world"`` all. One level must be of all.
            warmup_steps: at least 0.
            comm: the workers; None means ``localsgd.world()``.
            outer: makes the parameters after a round of all workers; those of smaller groups
                take the mean.
            compress, error_feedback, guard: as in ``ModelAverager``; rounds of smaller groups
                are exact.

        Warns:
            UserWarning: for a period of 1 at the level of all workers.

        Raises:
            TypeError, ValueError: for an invalid number, a size that does not divide the number
                of workers, or levels of which none is of all; no group has been made then.
            MismatchError: on every rank, if levels differ or those of another rank are invalid.
        """
        comm = workers_of(comm)
        topology = None if comm is NON_MEMBER else comm.topology

        def prepare() -> Hierarchy:
            checked = checked_count("warmup_steps", warmup_steps, at_least=0)
            return Hierarchy(_checked_levels(period_group_size_dict, topology), checked)

        hierarchy = agreed_schedule(comm, prepare)
        if hierarchy.levels[0][0] == 1:
            warnings.warn(
                "period 1 for all workers averages parameters after every step, which saves no "
                "communication over averaging gradients.",
                stacklevel=caller_level(),
            )
        super().__init__(
            hierarchy,
            comm,
            outer=outer,
            compress=compress,
            error_feedback=error_feedback,
            guard=guard,
        )
        self._groups = [_group(comm, size) for _, size in hierarchy.levels]
        self._hierarchy = hierarchy
        self._ledger = Ledger(len(self._groups))

    @property
    def period_group_size_dict(self) -> dict[int, GroupSize]:
        return dict(reversed(self._hierarchy.levels))

    @property
    def warmup_steps(self) -> int:
        return self._hierarchy.warmup_steps

    @property
    def groups(self) -> dict[int, Communicator]:
        """This worker's group for every period, the smallest first."""
        periods = [period for period, _ in self._hierarchy.levels]
        return dict(reversed(list(zip(periods, self._groups, strict=True))))

    def regroup(self, params: Arenas, change: Change, begun: int) -> None:
        """As ``ModelAverager.regroup``; makes the groups of all levels anew.

        Raises:
            ValueError: if the size of a group does not divide those that are left.
        """
        _checked_levels(self.period_group_size_dict, self.comm.topology)
        super().regroup(params, change, begun)
        self._groups = [_group(self.comm, size) for _, size in self._hierarchy.levels]

    @property
    def levels(self) -> Sequence[Communicator]:
        return self._groups

    def group_due(self, step: int) -> Communicator | None:
        if self._ends_synchrony(step) and self.comm is not NON_MEMBER:
            return self.comm
        level = self._hierarchy.level_due(step)
        return None if level is None or self.comm is NON_MEMBER else self._groups[level]


def _checked_levels(given: object, topology: Topology | None) -> tuple[tuple[int, GroupSize], ...]:
    """The levels, the largest group first; a worker outside the group cannot check sizes."""
    if given is None or (isinstance(given, Mapping) and not given):
        raise ValueError("period_group_size_dict must have at least one level, got none")
    if not isinstance(given, Mapping):
        raise TypeError(f"period_group_size_dict must map periods to group sizes, got {given!r}")
    levels = {
        checked_count("every period of period_group_size_dict", period, at_least=1): _checked_size(
            period, size
        )
        for period, size in given.items()
    }
    if topology is None:
        return tuple(sorted(levels.items(), reverse=True))
    workers = {period: _workers(period, size, topology) for period, size in levels.items()}
    if max(workers.values()) != topology.size:
        raise ValueError(
            f"the largest group must be of all {topology.size} workers, got {dict(given)} "
            f"with groups of at most {max(workers.values())}"
        )
    order = sorted(levels, key=lambda period: (-workers[period], levels[period] == "host", period))
    return tuple((period, levels[period]) for period in order)


def _checked_size(period: object, size: object) -> GroupSize:
    name = f"the group size of period {period}"
    if size == "host":
        return "host"
    if size == "world":
        return "world"
    if isinstance(size, str):
        raise ValueError(f"{name} must be a number, 'host' or 'world', got {size!r}")
    return checked_count(name, size, at_least=1)


def _workers(period: int, size: GroupSize, topology: Topology) -> int:
    """How many workers a group of this size has; for uneven hosts, the largest."""
    if size == "world":
        return topology.size
    if size == "host":
        return max(len(ranks) for ranks in topology.hosts)
    if topology.size % size:
        raise ValueError(
            f"the group size of period {period} must divide the {topology.size} workers, got {size}"
        )
    return size


def _group(comm: Communicator, size: GroupSize) -> Communicator:
    if comm is NON_MEMBER or size == "world" or size == comm.size:
        return comm
    if size == "host":
        return comm.split(comm.topology.host_of[comm.rank])
    return comm.split(comm.rank // size)
