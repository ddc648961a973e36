"""Workers as threads of one process: for notebooks, tests and simulation.

Any layout of hosts can be tried. Messages are copies in a mailbox; the memory of a "host" is
shared as between processes. A worker that raises ends the others' waiting, and its error is raised.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..bootstrap import connect
from ..contract import Array, Arrival, Json, Pending
from ..errors import RankFailure, name_ranks
from ..group import Group
from ..topology import HostsLike
from ..waiting import OnLate
from .office import Key, Office
from .solo import SoloTransport

Result = TypeVar("Result")

_CURRENT = threading.local()


def run_threads(
    size: int,
    work: Callable[..., Result],
    *args: object,
    hosts: HostsLike | None = None,
    deadline_s: float | None = None,
    on_late: OnLate | None = None,
    fault_tolerant: bool = False,
    respawn: bool = False,
) -> list[Result]:
    """Runs ``work(comm, *args)`` on ``size`` workers and returns what each returned, by rank.

    Args:
        hosts: which workers count as sharing a host, as in ``world``; None puts all on one.
        deadline_s, on_late: how long a worker waits for others, and what it does then; as in
            ``world``.
        fault_tolerant: whether a worker that raises is lost to the others, who may ``shrink``, and
            does not end them. What it raised is forgotten.
        respawn: whether workers may be started in the place of those, to run ``work`` from its top
            and ``join``; for a fault-tolerant run.

    Returns:
        What each worker returned, by rank; of those alone that were not lost. Those that were
        started later come behind.

    Raises:
        Exception: the first that a worker raised, once all have ended; in a fault-tolerant run if
            nobody is left.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 worker, got {size}")
    if respawn and not fault_tolerant:
        raise ValueError("respawn must be of a fault-tolerant run, got fault_tolerant=False")
    office = Office(size, fault_tolerant=fault_tolerant, respawn=respawn)

    def connected(transport: ThreadTransport | NewThread) -> Group:
        first = isinstance(transport, ThreadTransport)
        layout: HostsLike = hosts if hosts is not None else str(size)
        layout = layout if first else "1"
        return connect(transport, hosts=layout, deadline_s=deadline_s, on_late=on_late)

    results = run_workers(office, connected, work, *args)
    return [results[worker] for worker in sorted(results)]


def run_workers(
    office: Office,
    connected: Callable[[ThreadTransport | NewThread], Group],
    work: Callable[..., Result],
    *args: object,
) -> dict[int, Result]:
    """Runs ``work(comm, *args)`` on threads that meet in an office, as ``run_threads`` says.

    Args:
        connected: makes the group of a worker, of its transport.

    Returns:
        What each worker returned that was not lost.
    """
    size, fault_tolerant = office.size, office.fault_tolerant
    results: dict[int, Result] = {}
    threads: dict[int, threading.Thread] = {}

    def body(worker: int) -> None:
        _CURRENT.group = None
        office.enter(worker)
        try:
            first = worker < size
            comm = connected(
                ThreadTransport(office, worker) if first else NewThread(office, worker)
            )
            _CURRENT.group = comm
            result = work(comm, *args)
            if not comm.joining:
                results[worker] = result
            comm.close()
            office.end(worker, None)
        except BaseException as error:
            if fault_tolerant and current_group() is not None:
                _CURRENT.group.fail(error)
            office.end(worker, error)

    def start(worker: int) -> None:
        thread = threading.Thread(target=body, args=(worker,), name=f"rank {worker}")
        threads[worker] = thread
        thread.start()

    office.start = start
    for rank in range(size):
        start(rank)
    try:
        # Others may be started meanwhile.
        while waited := [thread for thread in list(threads.values()) if thread.is_alive()]:
            for thread in waited:
                thread.join()
    except BaseException as error:
        office.end(None, error)
        raise
    if office.first_error is not None:
        raise office.first_error
    for ended in () if results else list(office.ended.values()):
        if ended is not None:
            raise ended
    return results


def current_group() -> Group | None:
    """The group of the worker that calls, if it is a thread of ``run_threads``.

    In a process that a worker has forked there is none.
    """
    group: Group | None = getattr(_CURRENT, "group", None)
    return group


def _forget_group() -> None:
    _CURRENT.group = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_group)


class ThreadTransport:
    """Messages between threads.

    A group is named by the colours of the splits that led to it, so that its mail is its own.
    """

    def __init__(
        self,
        office: Office,
        rank: int,
        members: Sequence[int] | None = None,
        name: tuple[int, ...] = (),
    ) -> None:
        self._office, self._name, self._splits = office, name, 0
        self._members = tuple(range(office.size)) if members is None else tuple(members)
        self.rank, self.size = rank, len(self._members)

    def send(self, data: Array, dest: int, tag: int) -> Pending:
        key = self._name, self.rank, dest, tag
        self._office.put(key, data.copy(), self._members[self.rank], self._members[dest])
        return _Sent()

    def receive(self, into: Array, source: int, tag: int) -> Pending:
        return _Receipt(self._office, (self._name, source, self.rank, tag), into)

    def receive_up_to(self, into: Array, source: int, tag: int) -> Arrival:
        return _Receipt(self._office, (self._name, source, self.rank, tag), into, exact=False)

    def split(self, colors: Sequence[int | None]) -> ThreadTransport | None:
        self._splits += 1
        color = colors[self.rank]
        if color is None:
            return None
        ranks = [rank for rank, theirs in enumerate(colors) if theirs == color]
        return ThreadTransport(
            self._office,
            ranks.index(self.rank),
            [self._members[rank] for rank in ranks],
            (*self._name, self._splits, color),
        )

    def announce(self, record: bytes, dest: int) -> None:
        self._office.tell((self._name, dest), record, self._members[dest])

    def news(self) -> Sequence[bytes]:
        with self._office.lock:
            return self._office.news.pop((self._name, self.rank), ())

    def check(self, missing: Sequence[int]) -> None:
        first, failed = self._office.first_error, self._office.first_failed
        if first is not None:
            who, ranks = "the program", list(missing)
            if failed in self._members:
                ranks = [self._members.index(failed)]
                who = name_ranks(ranks)
            elif failed is not None:
                who = f"rank {failed} of all workers"
            raise RankFailure(f"{who} failed: {type(first).__name__}: {first}", ranks)
        ended = self._office.ended
        gone = [rank for rank in missing if self._members[rank] in ended]
        for rank in gone:
            error = ended[self._members[rank]]
            if error is not None:
                raise RankFailure(f"rank {rank} failed: {type(error).__name__}: {error}", [rank])
        if gone:
            raise RankFailure(f"{name_ranks(gone)} returned and can never come", gone)

    def end_when_stopped(self, patience_s: float) -> None:
        """Threads cannot be stopped."""

    def shrink(self, deadline_s: float) -> tuple[ThreadTransport, Sequence[int]]:
        office, me = self._office, self._members[self.rank]
        if not office.fault_tolerant:
            raise RankFailure("workers can be lost in run_threads(fault_tolerant=True) alone", [])
        members, number = office.meet(self._name, self._members, me)
        made = ThreadTransport(office, members.index(me), members, (*self._name, -number))
        return made, [self._members.index(member) for member in members]

    @property
    def growable(self) -> bool:
        return self._office.respawn

    @property
    def summoned(self) -> int:
        return len(self._office.door.expected(self._members[self.rank], self._office.ended))

    def summon(self, count: int) -> None:
        for _ in range(count):
            self._office.summon(self._members[self.rank])

    def offers(self) -> Sequence[tuple[Json, Json]]:
        return self._office.door.offers(self._members[self.rank], self._office.ended)

    def refuse(self, ticket: Json, reason: str) -> None:
        self._office.door.refuse(ticket, reason)

    def admit(self, ticket: Json, facts: Json, deadline_s: float) -> ThreadTransport:
        members, name = (*self._members, ticket), (*self._name, 0, -ticket)
        if self.rank == 0:
            self._office.door.admit(ticket, members, name, facts)
        return ThreadTransport(self._office, self.rank, members, name)

    def close(self) -> None:
        pass


class NewThread(SoloTransport):
    """A worker alone, which has been started to join others."""

    def __init__(self, office: Office, worker: int) -> None:
        super().__init__()
        self._office, self._worker = office, worker

    def join(self, offer: Json) -> tuple[ThreadTransport, Json]:
        office = self._office
        members, name, facts = office.door.wait(self._worker, offer, office.ended)
        return ThreadTransport(office, members.index(self._worker), members, name), facts


class _Sent:
    def done(self) -> bool:
        return True


class _Receipt:
    def __init__(self, office: Office, key: Key, into: Array, *, exact: bool = True) -> None:
        self._office, self._key, self._into, self._exact = office, key, into, exact
        self._here = False
        self.nbytes = into.size

    def done(self) -> bool:
        if not self._here:
            length = self._office.take(self._key, self._into, exact=self._exact)
            if length is not None:
                self.nbytes, self._here = length, True
        return self._here
