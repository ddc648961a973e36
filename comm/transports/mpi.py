"""Workers as MPI processes; importing this starts MPI.

A rank that raises takes the job down with its message: the others could only wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np

from ..contract import RECORD_BYTES, Array, Arrival, Json, Op, Pending
from ..errors import RankFailure
from ..waiting import Mail, Patience, Strangers, Waiter
from . import warden
from .mpi_ending import (
    SUMMONS,
    WAITING,
    Ending,
    end_the_job_on_errors,
    end_together,
    vanish,
)
from .mpi_library import ANNOUNCED, FAULT_TOLERANT, GIVEN_UP, MPI, RESPAWN, is_of_lost
from .mpi_messages import Message, Receipt

T = TypeVar("T")

_TAGS_PER_GROUP, _REDUCING = 8, 7
# Of the announcements to all groups, so that each process finds those to groups that it has closed.
_NEWS = 6
_OPS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}


class _Numbers:
    """The numbers that groups have used on this rank.

    Attributes:
        news: what has been announced to this rank in the groups that are open, by their number.
    """

    def __init__(self) -> None:
        self.next = 1
        self.news: dict[int, list[bytes]] = {}


class MpiTransport:
    """Messages between the processes of an MPI communicator of our own.

    All groups use the same one and are kept apart by their tags: MPICH has 2,048 communicators,
    and to free one is collective, which to close a group is not.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        ranks: Sequence[int],
        number: int,
        numbers: _Numbers,
        waiter: Waiter,
    ) -> None:
        """Takes part as this process among ``ranks``; not collective.

        Args:
            ranks: the members, as ranks of ``comm``.
            number: tells the messages of this group from those of others between two ranks.
            numbers: those that groups of this process have used, this one among them.
            waiter: waits for the others where a group is split.
        """
        self._comm, self._ranks, self._numbers = comm, tuple(ranks), numbers
        self._waiter, self._number = waiter, number
        numbers.news[number] = []
        self._has_joined = False
        self.rank, self.size = self._ranks.index(comm.Get_rank()), len(self._ranks)
        # Used again from the start after so many that the early groups have been left.
        different = (comm.Get_attr(MPI.TAG_UB) or 32_767) // _TAGS_PER_GROUP
        self._first_tag = number % different * _TAGS_PER_GROUP

    @classmethod
    def world(cls, patience: Patience) -> MpiTransport:
        """All processes of the job, in a communicator that nobody else uses.

        One that was started to join others is alone at first.
        """
        parent = MPI.Comm.Get_parent()
        is_new = RESPAWN and parent != MPI.COMM_NULL
        end_the_job_on_errors(is_new=is_new)
        if is_new and not _ALL:
            from .replacing import Waiting

            Ending.has_lost = True
            WAITING.append(Waiting(MPI.Intercomm(parent), vanish))
        strangers = Strangers(MPI.COMM_WORLD.Get_rank(), "no word yet", lambda _: None)
        waiter = Waiter(patience, strangers)
        if not _ALL:
            comm, request = MPI.COMM_WORLD.Idup()
            others = [rank for rank in range(comm.Get_size()) if rank != comm.Get_rank()]
            waiter.until(request.Test, lambda: others)
            _ALL.append(cls(comm, range(comm.Get_size()), 0, _Numbers(), waiter))
            end_together(lambda: _ALL[0])
        if is_new and not _ALL[0]._has_joined:
            return NewMpiTransport(_ALL[0]._comm, range(1), 0, _ALL[0]._numbers, waiter)
        everyone = _ALL[0]._split([0] * _ALL[0].size, waiter)
        assert everyone is not None
        return everyone

    def end_when_stopped(self, patience_s: float) -> None:
        if FAULT_TOLERANT:
            warden.watch(patience_s)

    def _within(self, deadline_s: float, work: Callable[[], T]) -> T:
        """What some work of all processes that are alive gives, all of which must call this.

        Raises:
            RankFailure: if one of them does not, until the deadline.
        """
        found: list[T] = []
        raised: list[MPI.Exception] = []

        def run() -> None:
            try:
                found.append(work())
            except MPI.Exception as error:
                raised.append(error)

        # It cannot be asked whether it is done: Open MPI's has no form that returns at once.
        working = threading.Thread(target=run, daemon=True)
        working.start()
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            strangers = Strangers(self.rank, "one of them does not come", lambda _: None)
            waiter = Waiter(Patience(deadline_s), strangers)
            waiter.until(lambda: not working.is_alive(), lambda: others)
        except RankFailure as error:
            Ending.cannot_go_on = True
            raise RankFailure(
                f"the job cannot go on without lost ranks, as one that is alive does not come, and "
                f"nobody on its host can end it: {error}",
                others,
            ) from None
        if raised:
            raise raised[0]
        return found[0]

    def send(self, data: Array, dest: int, tag: int) -> Pending:
        request = self._comm.Isend([data, MPI.BYTE], self._ranks[dest], self._first_tag + tag)
        return Message(request, dest)

    def receive(self, into: Array, source: int, tag: int) -> Pending:
        request = self._comm.Irecv([into, MPI.BYTE], self._ranks[source], self._first_tag + tag)
        return Receipt(request, into.size, source)

    def receive_up_to(self, into: Array, source: int, tag: int) -> Arrival:
        request = self._comm.Irecv([into, MPI.BYTE], self._ranks[source], self._first_tag + tag)
        return Receipt(request, into.size, source, exact=False)

    def split(self, colors: Sequence[int | None]) -> MpiTransport | None:
        return self._split(colors, self._waiter)

    def _split(self, colors: Sequence[int | None], waiter: Waiter) -> MpiTransport | None:
        # A number that none of these ranks has used: the largest of what each would take.
        number: int = max(Mail(self, waiter).collect(self._numbers.next))
        self._numbers.next = number + 1
        color = colors[self.rank]
        if color is None:
            return None
        members = [
            rank for rank, theirs in zip(self._ranks, colors, strict=True) if theirs == color
        ]
        return MpiTransport(self._comm, members, number, self._numbers, waiter)

    def announce(self, record: bytes, dest: int) -> None:
        if not MPI.Is_finalized():
            message = self._number.to_bytes(8, "little") + record
            ANNOUNCED.append(self._comm.Issend([message, MPI.BYTE], self._ranks[dest], _NEWS))

    def news(self) -> Sequence[bytes]:
        self.sort_news()
        found = self._numbers.news.get(self._number, [])
        return [found.pop(0) for _ in range(len(found))]

    def sort_news(self) -> None:
        """Takes what has come, of whatever group: nobody else may look for it."""
        while (message := self._look()) is not None:
            found = np.empty(8 + RECORD_BYTES, np.uint8)
            message.Recv([found, MPI.BYTE])
            news = self._numbers.news.get(int.from_bytes(found[:8].tobytes(), "little"))
            if news is not None:
                news.append(found[8:].tobytes())

    def _look(self) -> MPI.Message | None:
        try:
            return self._comm.Improbe(tag=_NEWS)
        except MPI.Exception as error:
            if not is_of_lost(error):
                raise
            # Until it is said that they are known to be lost, nobody is heard of.
            self._comm.Ack_failed()
            return None

    def begin_barrier(self) -> MPI.Request:
        return self._comm.Ibarrier()

    def check(self, missing: Sequence[int]) -> None:
        """Finds out who has died, where the library itself does not end the job."""
        if not FAULT_TOLERANT:
            return
        gone = self._comm.Get_failed().Translate_ranks(None, self._comm.Get_group())
        for rank in missing:
            if self._ranks[rank] in gone:
                raise RankFailure(f"rank {rank} has died", [rank])

    def shrink(self, deadline_s: float) -> tuple[MpiTransport, Sequence[int]]:
        if not FAULT_TOLERANT:
            raise RankFailure(
                "a job must be started with localsgd run --fault-tolerant to go on without the "
                "ranks that it lost",
                [],
            )
        if self.size < self._comm.Get_size():
            raise RankFailure("the group of all workers alone can go on without lost ranks", [])
        comm = MPI.Intracomm(self._within(deadline_s, self._comm.Shrink))
        old = self._comm.Get_group()
        numbers = [int(rank) for rank in comm.Get_group().Translate_ranks(None, old)]
        if len(numbers) < self.size:
            self._forget_announced()
        return self._of_changed(comm), numbers

    def _of_changed(self, comm: MPI.Intracomm) -> MpiTransport:
        made = MpiTransport(comm, range(comm.Get_size()), 0, _Numbers(), self._waiter)
        _ALL[0] = made
        return made

    @property
    def growable(self) -> bool:
        return RESPAWN and self.size == self._comm.Get_size()

    @property
    def summoned(self) -> int:
        return SUMMONS[0].expected if SUMMONS else 0

    def summon(self, count: int) -> None:
        if not SUMMONS:
            from .replacing import Summons

            SUMMONS.append(Summons())
        SUMMONS[0].start(count)

    def offers(self) -> Sequence[tuple[Json, Json]]:
        return SUMMONS[0].offers() if SUMMONS else ()

    def refuse(self, ticket: Json, reason: str) -> None:
        SUMMONS[0].answer(ticket, reason)

    def admit(self, ticket: Json, facts: Json, deadline_s: float) -> MpiTransport:
        from .replacing import joined

        def enlarged() -> MPI.Intracomm | None:
            """That of all and the new one, or None on every rank."""
            found: MPI.Intracomm | None = None
            try:
                bridge = MPI.Intracomm(MPI.COMM_NULL)
                if self.rank == 0:
                    SUMMONS[0].answer(ticket, "")
                    bridge = SUMMONS[0].bridge(ticket)
                found = joined(self._comm, bridge, 1)
            except MPI.Exception:
                # The others are waiting within it.
                self._comm.Revoke()
            try:
                # The same on all ranks, whoever dies meanwhile.
                return found if self._comm.Agree(int(found is not None)) else None
            except MPI.Exception:
                return None

        comm = self._within(deadline_s, enlarged)
        if comm is None:
            raise RankFailure("the worker that was to join has died, or another", [])
        if self.rank == 0:
            SUMMONS[0].admit(ticket, facts)
        self._forget_announced()
        return self._of_changed(comm)

    @staticmethod
    def _forget_announced() -> None:
        """Gives up what was announced to processes that never take it."""
        Ending.has_lost = True
        GIVEN_UP.extend(ANNOUNCED)
        ANNOUNCED.clear()

    def close(self) -> None:
        """Keeps the communicator, which other groups use."""
        if not MPI.Is_finalized():
            self.sort_news()
        self._numbers.news.pop(self._number, None)

    def allreduce(self, values: Array, op: Op) -> None:
        self._of_members.Allreduce(MPI.IN_PLACE, values, _OPS[op])

    @cached_property
    def _of_members(self) -> MPI.Intracomm:
        """A communicator of this group's ranks alone, which the library's reduction needs."""
        group = self._comm.Get_group().Incl(self._ranks)
        return self._comm.Create_group(group, self._first_tag + _REDUCING)


# The transport of all processes, once there is one.
_ALL: list[MpiTransport] = []


class NewMpiTransport(MpiTransport):
    """A process alone, which has been started to join others."""

    @property
    def growable(self) -> bool:
        return False

    def join(self, offer: Json) -> tuple[MpiTransport, Json]:
        comm, facts = WAITING[0].join(offer)
        made = self._of_changed(comm)
        made._has_joined = True
        return made, facts
