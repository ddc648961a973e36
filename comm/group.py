"""The communicator: every verb of the contract, over any transport; who is in it: ``members.py``.

A collective opens by showing a header and comparing everyone's (``_enter``), so that a mismatch is
an error on every rank before anything changes, and ends with a barrier on the host. Buffers in
shared regions are reduced where they lie; private ones go through a bounded staging block.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import DTypeLike

from .codecs import Codec, PlacedCodec
from .contract import (
    Array,
    Communicator,
    Json,
    Op,
    Request,
    Traffic,
    Update,
)
from .errors import require_length
from .meeting import (
    Header,
    arguments,
    equality,
    header,
)
from .members import Members
from .memory import CannotMap, share, share_again
from .nonmember import NON_MEMBER
from .reduction import Job
from .waiting import (
    DIRECT,
    GATHERED,
)


class Group(Members):
    """A group of workers; made by ``bootstrap.connect`` and by ``split``."""

    def __repr__(self) -> str:
        return f"<Communicator: rank {self.rank} of {self.size}, workers by host {self.topology}>"

    def __deepcopy__(self, memo: object) -> Group:
        """The group itself: a copied averager goes on with the same workers."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a communicator is tied to running processes and cannot be pickled")

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
                shared = share(
                    self._mail,
                    self.topology,
                    self.rank,
                    count * kind.itemsize,
                    later=self._setting.later,
                )
            except CannotMap as error:
                self._tell_of_private_memory(error)
                return np.zeros(count, kind)
            others = dict(zip(self._neighbours, shared.blocks, strict=True))
            del others[self._world_ranks[self.rank]]
            number = header.digest(self._number, self._entrance.sequence)
            self._setting.regions.add(shared.own, number, others, shared.place)
            return shared.own.view(kind)

    def map_again(self, buffer: Array) -> None:
        with self._collective:
            with self._own_errors:
                arguments.buffer("buffer", buffer)
            self._entrance.enter(Header("map_again", dtype=buffer.dtype, elements=buffer.size))
            regions = self._setting.regions
            region = regions.holding(buffer)
            place = None if region is None else region.place
            try:
                blocks = share_again(self._mail, self.topology, self.rank, place)
            except CannotMap as error:
                self._tell_of_private_memory(error)
                return
            others = {self._world_ranks[rank]: block for rank, block in blocks.items()}
            number = header.digest(self._number, self._entrance.sequence)
            regions.renew(buffer, number, others)

    def neighbours(self, buffer: Array) -> Mapping[int, Array]:
        arguments.buffer("buffer", buffer, writeable=False)
        region = self._setting.regions.find(buffer, self._neighbours)
        if region is None:
            raise ValueError(
                "buffer must lie in memory that the ranks of this host share, as allocate gives "
                "it, got other memory"
            )
        views = region.views(buffer, self._neighbours)
        return dict(zip(self.topology.neighbours(self.rank), views, strict=True))

    def until(self, done: Callable[[], bool], missing: Callable[[], Sequence[int]]) -> None:
        self._collective.require_open()
        self._waiter.until(done, missing)

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
