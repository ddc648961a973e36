"""The communicator: every verb of the contract, over any transport.

A collective opens by showing a header and comparing everyone's (``_enter``), so that a mismatch is
an error on every rank before anything changes, and ends with a barrier on the host. Buffers in
shared regions are reduced where they lie; private ones go through a bounded staging block.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
from numpy.typing import DTypeLike

from .codecs import Codec, PlacedCodec
from .contract import (
    Array,
    Communicator,
    Json,
    Op,
    Reduction,
    Request,
    ShrinkingTransport,
    Shrunk,
    Traffic,
    Transport,
    Update,
)
from .errors import RankFailure, require_length
from .meeting import (
    PAGE_BYTES,
    Board,
    Collective,
    Entrance,
    Header,
    News,
    OwnErrors,
    Progress,
    Whereabouts,
    arguments,
    equality,
    header,
)
from .memory import CannotMap, Regions, share
from .nonmember import NON_MEMBER
from .reduction import Job, Reducer, Reductions
from .topology import Topology
from .waiting import (
    DIRECT,
    GATHERED,
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
    """

    patience: Patience
    reduction: Reduction
    regions: Regions
    clock: Clock
    progress: Progress | None = None
    pace: Pace | None = None


class Group:
    """A group of workers; made by ``bootstrap.connect`` and by ``split``."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        world_ranks: Sequence[int],
        number: int,
        setting: Setting,
    ) -> None:
        """Meets the other ranks; collective.

        Args:
            world_ranks: the number in the world of every rank of this group.
            number: names the group; equal on all its ranks.

        Raises:
            CannotMap: on every rank, if ranks of one host cannot map each other's memory.
        """
        self._setting, self._number, self._shrinks = setting, number, 0
        pace = setting.pace
        self._background = Background(None if pace is None else pace.executor)
        self._told, self._earlier = False, Traffic()
        self._meet(transport, topology, world_ranks)
        leave_at_exit(self)

    def _meet(self, transport: Transport, topology: Topology, world_ranks: Sequence[int]) -> None:
        """Makes everything by which these ranks meet; collective."""
        setting = self._setting
        pace, clock = setting.pace, setting.clock
        pause = None if pace is None else pace.pause
        self.rank, self.size, self.topology = transport.rank, transport.size, topology
        self._transport = transport
        ranks = topology.neighbours(self.rank)
        self._neighbours = tuple(world_ranks[rank] for rank in ranks)
        self._world_ranks = tuple(world_ranks)
        strangers = Strangers(self.rank, "not joined", transport.check)
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

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.size}, hosts {self.topology}>"

    def __deepcopy__(self, memo: object) -> Group:
        """The group itself: a copied averager goes on with the same workers."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a communicator is tied to running processes and cannot be pickled")

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called on this rank, or this process was forked from it."""
        return self._collective.closed

    @property
    def traffic(self) -> Traffic:
        return self._earlier + self._moved()

    def _moved(self) -> Traffic:
        """What this rank has moved since these ranks have met."""
        return Traffic(
            self._collective.calls,
            self._reducer.host_read,
            self._reducer.host_written,
            self._mail.sent,
            self._mail.received,
            self._mail.control,
            self._collective.seconds,
            self._waiter.waited_s,
        )

    @property
    def begun(self) -> int:
        return self._entrance.sequence

    def allocate(self, count: int, dtype: DTypeLike) -> Array:
        with self._collective:
            with self._own_errors:
                kind = arguments.buffer_dtype(dtype)
                count = arguments.length(count, kind)
            self._entrance.enter(Header("allocate", dtype=kind, elements=count))
            try:
                shared = share(self._mail, self.topology, self.rank, count * kind.itemsize)
            except CannotMap as error:
                self._tell_of_private_memory(error)
                return np.zeros(count, kind)
            others = dict(zip(self._neighbours, shared.blocks, strict=True))
            del others[self._world_ranks[self.rank]]
            number = header.digest(self._number, self._entrance.sequence)
            self._setting.regions.add(shared.own, number, others)
            return shared.own.view(kind)

    def shard(self, count: int) -> slice:
        arguments.whole_number("count", count, at_least=0)
        return self.topology.shard(count, self.rank)

    def held(self, count: int) -> Sequence[slice]:
        arguments.whole_number("count", count, at_least=0)
        return self.topology.held(count, self.rank)

    def allreduce(
        self,
        buffer: Array,
        op: Op,
        *,
        weight: float | None = None,
        codec: Codec | PlacedCodec | None = None,
        update: Update | None = None,
        mix: float = 0.0,
        finite: bool = False,
        label: str = "",
    ) -> None:
        with self._collective:
            self._reductions.reduce(
                "allreduce", buffer, op, weight, codec, update, mix, finite, label
            )

    def reduce_scatter(
        self,
        buffer: Array,
        op: Op,
        *,
        weight: float | None = None,
        codec: Codec | PlacedCodec | None = None,
        update: Update | None = None,
    ) -> None:
        with self._collective:
            self._reductions.reduce("reduce_scatter", buffer, op, weight, codec, update)

    def allgather(self, buffer: Array, *, codec: Codec | PlacedCodec | None = None) -> None:
        with self._collective:
            with self._own_errors:
                arguments.buffer("buffer", buffer)
                arguments.codec(codec, buffer)
            self._entrance.enter(self._reducer.describe(Header("allgather"), buffer, codec))
            self._reductions.run(Job(None, [1.0] * self.size, codec), buffer)

    def broadcast(self, buffer: Array, root: int) -> None:
        with self._collective:
            with self._own_errors:
                arguments.buffer("buffer", buffer)
                arguments.rank("root", root, self.size)
            self._reductions.broadcast(buffer, root)

    def sendrecv(self, send: Array, receive: Array, dest: int, source: int) -> None:
        with self._collective:
            arguments.buffer("send", send, writeable=False)
            arguments.buffer("receive", receive)
            arguments.rank("dest", dest, self.size)
            arguments.rank("source", source, self.size)
            if dest == source == self.rank:
                # Open MPI cuts what a rank sends itself without a word.
                require_length(send.nbytes, receive.nbytes, source)
            self._mail.exchange({dest: send}, {source: receive}, DIRECT)

    def exchange(self, sends: Mapping[int, Array], receives: Mapping[int, Array]) -> None:
        with self._collective:
            for name, buffers in (("sends", sends), ("receives", receives)):
                for peer, buffer in buffers.items():
                    arguments.rank(name, peer, self.size)
                    arguments.other(name, peer, self.rank)
                    arguments.buffer(name, buffer, writeable=name == "receives")
            self._mail.exchange(sends, receives, DIRECT)

    def gather(self, array: Array) -> list[Array]:
        with self._collective:
            with self._own_errors:
                arguments.buffer("array", array, writeable=False)
            self._entrance.enter(Header("gather"))
            shapes = self._mail.collect([array.size, array.dtype.name])
            arrays = [np.empty(count, arguments.buffer_dtype(name)) for count, name in shapes]
            peers = [peer for peer in range(self.size) if peer != self.rank]
            arrays[self.rank][...] = array
            places = {peer: arrays[peer] for peer in peers}
            self._mail.exchange(dict.fromkeys(peers, array), places, GATHERED)
            return arrays

    def barrier(self) -> None:
        with self._collective:
            self._entrance.enter(Header("barrier"))

    def collect(self, value: Json) -> list[Json]:
        with self._collective:
            with self._own_errors:
                text = equality.as_json(value)
            self._board.show_text(text, self._entrance.sequence + 1)
            self._entrance.enter(Header("collect"))
            texts = self._board.texts(self._entrance.sequence) if self._one_host else None
            if texts is None:
                return self._mail.collect(value)
            return [json.loads(text) for text in texts]

    def agree(self, value: Json, what: str) -> None:
        equality.require_equal(self.collect(value), what)

    def start(self, work: Callable[[Communicator], None]) -> Request:
        self._collective.require_open()
        return self._background.start(lambda: work(self))

    def split(self, color: int | None) -> Communicator:
        with self._collective:
            with self._own_errors:
                if color is not None:
                    arguments.whole_number("color", color, at_least=0)
                    color = operator.index(color)
            self._entrance.enter(Header("split"))
            colors = self._mail.collect(color)
            transport = self._transport.split(colors)
            if transport is None:
                return NON_MEMBER
            members = [rank for rank, theirs in enumerate(colors) if theirs == color]
            return Group(
                transport,
                self.topology.restrict(members),
                [self._world_ranks[rank] for rank in members],
                header.digest(self._number, self._entrance.sequence, color),
                self._setting,
            )

    def shrink(self, *, silent: Sequence[int] = ()) -> Shrunk:
        self._collective.require_open()
        # Who comes to wait for this rank is to come here instead.
        self._entrance.fail(RankFailure("this rank goes on without those that are lost", []))
        for rank in silent:
            self._board.kill(rank)
        deadline_s = self._waiter.deadline_s
        self._end_silent(deadline_s)
        self._background.drain()
        if not isinstance(self._transport, ShrinkingTransport):
            raise RankFailure(f"{self!r} cannot go on without those that are lost", [])
        before, world_ranks, traffic = self.topology, self._world_ranks, self.traffic
        # Neighbours of other hosts may be waiting there for silent ones.
        transport, numbers = self._transport.shrink(2 * deadline_s + _MORE_S)
        begun = {r: self._board.begun(r) for r in self._board.ranks if r not in numbers}
        self._earlier, self._shrinks = traffic, self._shrinks + 1
        self._number = header.digest(self._number, "shrunk", self._shrinks)
        self._meet(transport, before.restrict(numbers), [world_ranks[rank] for rank in numbers])
        regions, here = self._setting.regions, world_ranks[numbers[self.rank]]

        def memory_of(buffer: Array, number: int) -> Array | None:
            theirs = world_ranks[number]
            region = regions.find(buffer, [theirs])
            if theirs == here:
                return buffer
            return None if region is None else region.views(buffer, [theirs])[0]

        return Shrunk(before, tuple(numbers), memory_of, begun)

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
