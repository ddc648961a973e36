"""Workers as the ranks of a torch.distributed group: what ``torchrun`` gives without MPI.

Only messages go through torch; the memory of a host is shared and the sums are ours, so results
are those of every other backend. Groups split from one another use the same connections and are
kept apart by their tags.

gloo can only wait for a message, for as long as torch allows. So the length of each goes ahead of
it, to memory that can be looked at: once that is here the message is under way and soon here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from localsgd.comm.contract import RECORD_BYTES, Array, Arrival, Pending, as_bytes
from localsgd.comm.errors import RankFailure, require_length
from localsgd.comm.waiting import DIRECT
from localsgd.torch.comm.modes import outside_modes

# Far from the tags that a program uses on the same group itself.
_FIRST_TAG = 0x4C53_0000
_TAGS_PER_GROUP, _LENGTHS = 16, 8
_NEWS, _NEVER, _NUMBERING = 5, 6, 7
# Added to every length, so that memory shows that one has come.
_HERE = 1
# What nobody waits for any more: announcements, and what a rank that failed or gave up has begun.
_GIVEN_UP: list[tuple[dist.Work, torch.Tensor]] = []

Result = TypeVar("Result")


class _Numbers:
    """The numbers that groups over one process group have used on this rank."""

    def __init__(self) -> None:
        self.next = 1


class GlooTransport:
    """Messages between ranks of a gloo group.

    Attributes:
        ranks: the members, as ranks of ``given``.
        given: the group that the program has, whose devices may have another way.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup,
        ranks: Sequence[int],
        number: int,
        numbers: _Numbers,
        given: dist.ProcessGroup,
    ) -> None:
        """Takes part as the rank of ``process_group`` among ``ranks``; not collective.

        Args:
            ranks: the members, as ranks of ``process_group``.
            number: tells the messages of this group from those of others between two ranks.
            given: the group of the same ranks that the program has.
        """
        self._group, self._numbers, self.given = process_group, numbers, given
        self.ranks = tuple(ranks)
        self.rank, self.size = self.ranks.index(process_group.rank()), len(self.ranks)
        self._first_tag = _FIRST_TAG + _TAGS_PER_GROUP * number
        # Before there is any news: gloo loses what comes from a peer that is gone by then.
        self._record = self._next_record() if self.size > 1 else None

    @classmethod
    def over(cls, process_group: dist.ProcessGroup) -> GlooTransport:
        """All ranks of a process group. Collective if it has no gloo for CPU tensors."""
        group = _with_gloo(process_group)
        return cls(group, range(group.size()), 0, _Numbers(), process_group)

    def send(self, data: Array, dest: int, tag: int) -> Pending:
        if not data.flags.writeable:
            data = data.copy()
        length = np.array([data.size + _HERE])
        works = [self._send(as_bytes(length), dest, tag + _LENGTHS)]
        if data.size:
            works.append(self._send(data, dest, tag))
        return _Sent(works)

    def receive(self, into: Array, source: int, tag: int) -> Pending:
        # Lengths are compared before anything else is sent, but for direct messages.
        return self._receipt(into, source, tag, known=tag != DIRECT, exact=True)

    def receive_up_to(self, into: Array, source: int, tag: int) -> Arrival:
        return self._receipt(into, source, tag, known=False, exact=False)

    def split(self, colors: Sequence[int | None]) -> GlooTransport | None:
        number = self._agree_on_number()
        self._numbers.next = number + 1
        color = colors[self.rank]
        if color is None:
            return None
        members = [rank for rank, theirs in zip(self.ranks, colors, strict=True) if theirs == color]
        return GlooTransport(self._group, members, number, self._numbers, self.given)

    def announce(self, record: bytes, dest: int) -> None:
        # Whoever is gone, or has ended the process group, cannot be told and need not be.
        data = np.frombuffer(bytearray(record), np.uint8)
        with suppress(RankFailure):
            self._send(data, dest, _NEWS)

    def news(self) -> Sequence[bytes]:
        found: list[bytes] = []
        if self._record is None and self.size > 1:
            self._record = self._next_record()
        while self._record is not None and self._record[0].any():
            record, work = self._record
            work.wait()
            found.append(record.tobytes())
            self._record = self._next_record()
        return found

    def check(self, missing: Sequence[int]) -> None:
        """Begins to receive what is never sent, which gloo refuses of a peer that is gone."""
        for rank in missing:
            if rank != self.rank:
                self._receive(np.empty(1, np.uint8), rank, _NEVER).drop()

    def close(self) -> None:
        """Keeps the process group, which is the program's."""

    def _next_record(self) -> tuple[Array, _Work] | None:
        """Begins to receive news; None when a peer is gone: gloo then refuses it from any."""
        record = np.zeros(RECORD_BYTES, np.uint8)
        with suppress(RankFailure):
            return record, self._receive(record, None, _NEWS)
        return None

    def _agree_on_number(self) -> int:
        """A number that none of these ranks has used: the largest of what each would take."""
        mine = np.array([self._numbers.next], np.int64)
        if self.rank == 0:
            theirs = np.empty(1, np.int64)
            for peer in range(1, self.size):
                self._receive(as_bytes(theirs), peer, _NUMBERING).wait()
                mine[0] = max(mine[0], theirs[0])
            for peer in range(1, self.size):
                self._send(as_bytes(mine), peer, _NUMBERING).wait()
        else:
            self._send(as_bytes(mine), 0, _NUMBERING).wait()
            self._receive(as_bytes(mine), 0, _NUMBERING).wait()
        return int(mine[0])

    @outside_modes()
    def _send(self, data: Array, dest: int, tag: int) -> _Work:
        tensor, peer, number = torch.from_numpy(data), self.ranks[dest], self._first_tag + tag
        return _Work(lambda: self._group.send([tensor], peer, number), tensor, dest)

    def _receipt(self, into: Array, source: int, tag: int, *, known: bool, exact: bool) -> _Receipt:
        length = np.zeros(1, np.int64)
        ahead = self._receive(as_bytes(length), source, tag + _LENGTHS)

        def begin(data: Array) -> _Work | None:
            return self._receive(data, source, tag) if data.size else None

        payload = begin(into) if known else None
        return _Receipt(length, ahead, into, payload, begin, source, exact)

    @outside_modes()
    def _receive(self, into: Array, source: int | None, tag: int) -> _Work:
        """Begins to receive from a rank, or from any."""
        tensor, number = torch.from_numpy(into), self._first_tag + tag
        if source is None:
            return _Work(lambda: self._group.recv_anysource([tensor], number), tensor, self.rank)
        peer = self.ranks[source]
        return _Work(lambda: self._group.recv([tensor], peer, number), tensor, source)


class _Work:
    """What torch has begun, which can only be waited for: gloo never says that it has ended."""

    def __init__(self, start: Callable[[], dist.Work], tensor: torch.Tensor, peer: int) -> None:
        self._tensor, self._peer = tensor, peer
        self._work: dist.Work | None = None
        self._work = self._told(start)

    def wait(self) -> None:
        if self._work is not None:
            self._told(self._work.wait)
            self._work = None

    def drop(self) -> None:
        """Lets go of what never comes."""
        self._work = None

    def __del__(self) -> None:
        # The other end counts on it, or what comes too late needs the memory.
        if self._work is not None:
            _GIVEN_UP.append((self._work, self._tensor))

    def _told(self, what: Callable[[], Result]) -> Result:
        try:
            return what()
        except RuntimeError as error:
            raise RankFailure(
                f"no message could be exchanged with rank {self._peer}: {error}", [self._peer]
            ) from error


class _Sent:
    def __init__(self, works: Sequence[_Work]) -> None:
        self._works = works

    def done(self) -> bool:
        for work in self._works:
            work.wait()
        return True


class _Receipt:
    """A message whose length can be looked for.

    Args:
        length: where the length comes to.
        payload: the message itself, unless it is begun when its length is known.
        begin: begins to receive a message.
        exact: whether no other length than that of ``into`` will do.
    """

    def __init__(
        self,
        length: NDArray[np.int64],
        ahead: _Work,
        into: Array,
        payload: _Work | None,
        begin: Callable[[Array], _Work | None],
        source: int,
        exact: bool,
    ) -> None:
        self._length, self._ahead, self._into = length, ahead, into
        self._payload, self._begin, self._source = payload, begin, source
        self._exact, self._here, self.nbytes = exact, False, into.size

    def done(self) -> bool:
        if not self._here and self._length[0]:
            self._ahead.wait()
            nbytes = int(self._length[0]) - _HERE
            fits = nbytes == self._into.size or (nbytes < self._into.size and not self._exact)
            # One of another length is taken out of the way of the next.
            into = self._into[:nbytes] if fits else np.empty(nbytes, np.uint8)
            payload = self._payload or self._begin(into)
            if payload is not None:
                payload.wait()
            self._here = True
            if not fits:
                require_length(nbytes, self._into.size, self._source)
            self.nbytes = nbytes
        return self._here


def _with_gloo(process_group: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group itself if it sends CPU tensors, or a gloo group of the same ranks."""
    try:
        process_group._get_backend(torch.device("cpu"))
    except RuntimeError:
        ranks = dist.get_process_group_ranks(process_group)
        made: dist.ProcessGroup = dist.new_group(
            ranks, backend="gloo", use_local_synchronization=True
        )
        return made
    return process_group
