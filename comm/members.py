"""Who is in a group: how its ranks meet, lose some, take in others, and leave.

The verbs are in ``group.py``. What a rank keeps of its group is made when the ranks meet, and made
anew when there are others; the object and the memory of its buffers stay.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .changes import Change
from .contract import Array, Json, Reduction, Traffic, Transport
from .errors import RankFailure
from .homes import Homes
from .meeting import (
    PAGE_BYTES,
    Board,
    Collective,
    Entrance,
    News,
    OwnErrors,
    Progress,
    Whereabouts,
    header,
)
from .memory import CannotMap, Regions, share
from .nonmember import NON_MEMBER
from .reduction import Reducer, Reductions
from .topology import Topology
from .varying import GrowingTransport, JoiningTransport, ShrinkingTransport
from .waiting import (
    Background,
    Clock,
    Mail,
    Pace,
    Patience,
    Strangers,
    Waiter,
    leave_at_exit,
)

_MORE_S = 5.0


@dataclass(frozen=True)
class Setting:
    """What a group and the groups split from it have in common.

    Attributes:
        patience: how long a rank waits for others.
        regions: this rank's shared memory.
        clock: seconds.
        progress: what a rank shows in all groups; None before there is one.
        pace: what has the clock, where time is not the machine's.
        identity: of this rank's host.
        later: whether ranks that come later are to map memory of this one.
    """

    patience: Patience
    reduction: Reduction
    regions: Regions
    clock: Clock
    progress: Progress | None = None
    pace: Pace | None = None
    identity: str = ""
    later: bool = False


class Members(ABC):
    """The ranks of a group.

    Attributes:
        homes: the hosts of a group of all workers; None in one that was split from it.
    """

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        world_ranks: Sequence[int],
        number: int,
        setting: Setting,
        homes: Homes | None = None,
    ) -> None:
        """Meets the other ranks; collective.

        Args:
            world_ranks: the number in the world of every rank of this group.
            number: names the group; equal on all its ranks.
            homes: of a group of all workers.

        Raises:
            CannotMap: on every rank, if ranks of one host cannot map each other's memory.
        """
        self._setting, self._number, self._changes, self.homes = setting, number, 0, homes
        # What number in the world the next rank gets: one that nobody has had.
        self._next = max(world_ranks) + 1
        pace = setting.pace
        self._background = Background(None if pace is None else pace.executor)
        self._told, self._earlier = False, Traffic()
        # How the group has grown, as long as not all are known to have met since.
        self._growing: Change | None = None
        self._meet(transport, topology, world_ranks)
        leave_at_exit(self)

    rank: int
    size: int
    topology: Topology

    @abstractmethod
    def collect(self, value: Json) -> list[Json]: ...

    @abstractmethod
    def barrier(self) -> None: ...

    @property
    @abstractmethod
    def traffic(self) -> Traffic: ...

    @abstractmethod
    def _moved(self) -> Traffic: ...

    @abstractmethod
    def shard(self, count: int) -> slice: ...

    def _meet(self, transport: Transport, topology: Topology, world_ranks: Sequence[int]) -> None:
        """Makes everything by which these ranks meet; collective."""
        setting = self._setting
        self.rank, self.size, self.topology = transport.rank, transport.size, topology
        self._transport, self._is_met = transport, False
        ranks = topology.neighbours(self.rank)
        self._neighbours = tuple(world_ranks[rank] for rank in ranks)
        self._world_ranks = tuple(world_ranks)
        strangers = Strangers(self.rank, "not joined", transport.check)
        pace, clock = setting.pace, setting.clock
        pause = None if pace is None else pace.pause
        joining = Waiter(setting.patience, strangers, clock, pause)
        pages = share(Mail(transport, joining), topology, self.rank, PAGE_BYTES)
        self._board = Board(pages.blocks, ranks, pages.pids, self.rank)
        progress = setting.progress or Progress(
            dict(zip(self._neighbours, pages.blocks, strict=True)), world_ranks[self.rank]
        )
        self._setting, self.progress = replace(setting, progress=progress), progress.steps
        news = News(transport)
        whereabouts = Whereabouts(
            self._board,
            news,
            progress,
            transport,
            topology,
            self._number,
            world_ranks,
            clock,
        )
        self._waiter = Waiter(setting.patience, whereabouts, clock, pause)
        self._whereabouts = whereabouts
        self._mail = Mail(transport, self._waiter)
        self._entrance = Entrance(
            self._board, self._mail, news, whereabouts, self._waiter, topology, self.rank
        )
        self._reducer = Reducer(
            self._mail,
            self._board,
            self._entrance,
            topology,
            self.rank,
            setting.regions,
            self._neighbours,
            self._tell_of_private_memory,
        )
        self._one_host = len(topology.hosts) == 1
        if not self._one_host and isinstance(transport, ShrinkingTransport):
            transport.end_when_stopped(setting.patience.fail_after_s(0.0))
        self._collective = Collective(
            self._background,
            self._entrance,
            self._board.moments,
            clock if pace is None else pace.begin,
            clock if pace is None else pace.ends(self._moved, self._number),
        )
        self._own_errors = OwnErrors(self._entrance)
        native = transport if setting.reduction == "native" else None
        self._reductions = Reductions(
            self._entrance, self._reducer, self._own_errors, self.size, self.shard, native
        )
        self._is_met = True

    @property
    def transport(self) -> Transport:
        """What carries the messages of this group."""
        return self._transport

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called on this rank, or this process was forked from it."""
        return self._collective.closed

    @property
    def growable(self) -> bool:
        transport = self._transport
        can = isinstance(transport, GrowingTransport) and transport.growable
        return can and self.homes is not None

    @property
    def joining(self) -> bool:
        return isinstance(self._transport, JoiningTransport)

    @property
    def summoned(self) -> int:
        return self._transport.summoned if isinstance(self._transport, GrowingTransport) else 0

    def summon(self, count: int) -> None:
        self._of_growing().summon(count)

    def shrink(self, *, silent: Sequence[int] = ()) -> Change:
        self._collective.require_open()
        # Who comes to wait for this rank is to come here instead.
        self._entrance.fail(RankFailure("this rank goes on without those that are lost", []))
        deadline_s = self._waiter.deadline_s
        # Where some have not met since the group has grown nobody can tell who is silent.
        if self._is_met and self._growing is None:
            for rank in silent:
                self._board.kill(rank)
            self._end_silent(deadline_s)
        self._background.drain()
        if not isinstance(self._transport, ShrinkingTransport):
            raise RankFailure(f"{self!r} cannot go on without those that are lost", [])
        before, world_ranks, traffic = self.topology, self._world_ranks, self.traffic
        growing, self._growing = self._growing, None
        # Neighbours of other hosts may be waiting there for silent ones.
        transport, numbers = self._transport.shrink(2 * deadline_s + _MORE_S)
        lost = [r for r in self._board.ranks if r not in numbers] if self._is_met else []
        begun = {rank: self._board.begun(rank) for rank in lost}
        self._earlier, self._changes = traffic, self._changes + 1
        self._number = header.digest(self._number, "shrunk", self._changes)
        if self.homes is not None:
            self.homes = self.homes.without_others(numbers)
        self._meet(transport, before.restrict(numbers), [world_ranks[rank] for rank in numbers])
        change = self._change(before, world_ranks, numbers, begun)
        return change if growing is None else growing.then(change)

    def grow(self, reason_against: Callable[[Json], str]) -> Change | None:
        transport = self._of_growing()
        found = self.collect(self._candidate(transport, reason_against))[0]
        if found is None:
            return None
        ticket, identity = found
        self._background.drain()
        homes = self.homes
        assert homes is not None
        facts = {
            "hosts": [list(ranks) for ranks in self.topology.hosts],
            "world ranks": list(self._world_ranks),
            "number": self._number,
            "changes": self._changes,
            "next": self._next,
            "names": list(homes.names),
            "given": homes.given,
            "free": list(homes.free),
        }
        made = transport.admit(ticket, {**facts, "identity": identity}, self._waiter.deadline_s)
        return self._enlarged(made, facts, identity)

    def join(self, offer: Json) -> Change:
        if not isinstance(self._transport, JoiningTransport):
            raise ValueError(f"{self!r} must have been started to join others, to do so")
        made, facts = self._transport.join([self._setting.identity, offer])
        return self._enlarged(made, facts, facts["identity"])

    def _candidate(
        self, transport: GrowingTransport, reason_against: Callable[[Json], str]
    ) -> Json | None:
        """On rank 0 a worker that can join, with its host; those that cannot are told."""
        for ticket, (identity, offer) in transport.offers() if self.rank == 0 else ():
            reason = reason_against(offer)
            if not reason:
                return [ticket, identity]
            transport.refuse(ticket, reason)
            print(f"localsgd: a worker cannot join: {reason}", file=sys.stderr, flush=True)
        return None

    def _of_growing(self) -> GrowingTransport:
        if not (self.growable and isinstance(self._transport, GrowingTransport)):
            raise ValueError(
                "workers can be added to the group of all workers of a job started with localsgd "
                "run --fault-tolerant --respawn, or by run_threads(fault_tolerant=True, "
                f"respawn=True), got {self!r}"
            )
        return self._transport

    def _enlarged(self, transport: Transport, facts: Mapping[str, Any], identity: str) -> Change:
        """Meets again, with the rank that the transport has behind the others. Collective."""
        # Neighbours that wait for this one as it was will see that it is not there any more.
        self._entrance.leave()
        before = Topology.of(facts["hosts"])
        homes = Homes(tuple(facts["names"]), facts["given"], tuple(facts["free"]))
        world_ranks = list(facts["world ranks"])
        world_ranks.append(facts["next"])
        self._next = facts["next"] + 1
        self._earlier, self._changes = self.traffic, int(facts["changes"]) + 1
        self._number = header.digest(facts["number"], "grown", self._changes)
        self._setting.regions.grow(world_ranks[transport.rank])
        steps = self.progress[0]
        self._setting = replace(self._setting, progress=None, later=True)
        self._growing = self._change(before, world_ranks, range(before.size), {}, grown=True)
        self.homes = homes.with_one(identity)
        self._transport = transport
        try:
            self._meet(transport, self.homes.topology, world_ranks)
        except CannotMap:
            self.homes = homes.with_one_apart()
            self._meet(transport, self.homes.topology, world_ranks)
        self.progress[0] = steps
        self.barrier()
        change, self._growing = self._growing, None
        return change

    def _change(
        self,
        before: Topology,
        world_ranks: Sequence[int],
        numbers: Sequence[int],
        begun: Mapping[int, int],
        *,
        grown: bool = False,
    ) -> Change:
        regions = self._setting.regions
        # A rank that is new was not there.
        here = regions.world_rank

        def memory_of(buffer: Array, number: int) -> Array | None:
            theirs = world_ranks[number]
            if theirs == here:
                return buffer
            region = regions.find(buffer, [theirs], before=True)
            return None if region is None else region.views(buffer, [theirs])[0]

        return Change(before, tuple(numbers), memory_of, begun, grown)

    def _end_silent(self, deadline_s: float) -> None:
        """Returns once the neighbours have given up, too; kills those that do not."""
        words = "they have not given up what they do"
        neighbours = Strangers(self.rank, words, lambda _: self._board.beat())
        pace = self._setting.pace
        pause = None if pace is None else pace.pause
        waiter = Waiter(Patience(deadline_s), neighbours, self._setting.clock, pause)
        try:
            waiter.until(lambda: not self._board.going_on(), self._board.going_on)
        except RankFailure as error:
            for rank in error.ranks:
                self._board.kill(rank)

    def close(self) -> None:
        if not self.closed:
            self._background.drain()
            self._background.close()
            self._collective.closed = True
            self.leave()
            self._transport.close()

    def leave(self) -> None:
        """Tells the other ranks that this one takes part no more."""
        self._entrance.leave()

    def check(self) -> None:
        """Raises RankFailure if another rank has failed."""
        if not self.closed:
            self._whereabouts.check([rank for rank in range(self.size) if rank != self.rank])

    def fail(self, error: BaseException) -> None:
        """Tells the other ranks that this one ends of an error."""
        self._entrance.fail(error)

    def disown(self) -> None:
        """Makes this copy, in a process that was forked from the rank's, unusable."""
        self._collective.closed, self.progress = True, NON_MEMBER.progress
        self._collective.forked_from = f"rank {self.rank} of {self.size}"

    def _tell_of_private_memory(self, reason: Exception) -> None:
        if self.rank == 0 and not self._told:
            self._told = True
            words = "memory is not shared, and averages of it take longer"
            print(f"localsgd: {words}: {reason}", file=sys.stderr)
