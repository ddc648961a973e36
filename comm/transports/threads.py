"""Workers as threads of one process: for notebooks, tests and simulation.

Any layout of hosts can be tried. Messages are copies in a mailbox; the memory of a "host" is
shared as between processes. A worker that raises ends the others' waiting, and its error is raised.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ..bootstrap import connect
from ..contract import Array, Arrival, Pending
from ..errors import RankFailure, name_ranks, require_length
from ..group import Group
from ..topology import HostsLike
from ..waiting import OnLate

Result = TypeVar("Result")
Key = tuple[tuple[int, ...], int, int, int]

_CURRENT = threading.local()
_LOOK_AGAIN_S = 0.01


def run_threads(
    size: int,
    work: Callable[..., Result],
    *args: object,
    hosts: HostsLike | None = None,
    deadline_s: float | None = None,
    on_late: OnLate | None = None,
    fault_tolerant: bool = False,
) -> list[Result]:
    """Runs ``work(comm, *args)`` on ``size`` workers and returns what each returned, by rank.

    Args:
        hosts: which workers count as sharing a host, as in ``world``; None puts all on one.
        deadline_s, on_late: how long a worker waits for others, and what it does then; as in
            ``world``.
        fault_tolerant: whether a worker that raises is lost to the others, who may ``shrink``, and
            does not end them. What it raised is forgotten.

    Returns:
        What each worker returned, by rank; of those alone that were not lost.

    Raises:
        Exception: the first that a worker raised, once all have ended; in a fault-tolerant run if
            nobody is left.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 worker, got {size}")
    office = Office(size, fault_tolerant=fault_tolerant)
    layout = hosts if hosts is not None else str(size)
    results = run_workers(
        office,
        lambda transport: connect(transport, hosts=layout, deadline_s=deadline_s, on_late=on_late),
        work,
        *args,
    )
    return [results[rank] for rank in sorted(results)]


def run_workers(
    office: Office,
    connected: Callable[[ThreadTransport], Group],
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

    def body(rank: int) -> None:
        office.enter(rank)
        try:
            comm = connected(ThreadTransport(office, rank))
            _CURRENT.group = comm
            results[rank] = work(comm, *args)
            comm.close()
            office.end(rank, None)
        except BaseException as error:
            if fault_tolerant and current_group() is not None:
                _CURRENT.group.fail(error)
            office.end(rank, error)

    threads = [
        threading.Thread(target=body, args=(rank,), name=f"rank {rank}") for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        office.end(None, error)
        raise
    if office.first_error is not None:
        raise office.first_error
    for ended in () if results else office.ended.values():
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


class _Left:
    """Where workers meet that are left of a group."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._here: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self._found: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}

    def meet(
        self, name: tuple[int, ...], members: Sequence[int], me: int, ended: Mapping[int, object]
    ) -> tuple[tuple[int, ...], int]:
        """Those members that come here, once all others have ended, and a number for them."""
        with self._changed:
            self._here[name].add(me)
            self._changed.notify_all()
            while name not in self._found:
                if all(m in self._here[name] or m in ended for m in members):
                    here = tuple(m for m in members if m in self._here[name])
                    self._found[name] = here, len(self._found) + 1
                    self._changed.notify_all()
                    break
                self._changed.wait(_LOOK_AGAIN_S)
            return self._found[name]


class Office:
    """What the workers of one run share: the mailboxes, and who has ended and how.

    Attributes:
        ended: how each worker has ended that has.
    """

    def __init__(self, size: int, *, fault_tolerant: bool) -> None:
        self.size, self.fault_tolerant = size, fault_tolerant
        self.left = _Left()
        self.boxes: dict[Key, deque[Array]] = defaultdict(deque)
        self.news: dict[tuple[tuple[int, ...], int], list[bytes]] = defaultdict(list)
        self.lock = threading.Lock()
        self.ended: dict[int, BaseException | None] = {}
        self.first_error: BaseException | None = None
        self.first_failed: int | None = None

    def enter(self, rank: int) -> None:
        """The thread of a worker begins."""

    def put(self, key: Key, message: Array, sender: int, receiver: int) -> None:
        """Puts a message into a box; workers are named by their number among all."""
        with self.lock:
            self.boxes[key].append(message)

    def tell(self, key: tuple[tuple[int, ...], int], record: bytes, receiver: int) -> None:
        """Leaves a record for a worker."""
        with self.lock:
            self.news[key].append(record)

    def take(self, key: Key, into: Array, *, exact: bool) -> int | None:
        """Moves the next message of a box; returns its length in bytes, or None without one.

        Raises:
            MismatchError: if it is to have the length of ``into`` and has another.
        """
        with self.lock:
            box = self.boxes[key]
            if not box:
                return None
            if exact:
                require_length(box[0].size, into.size, key[1])
            message = box.popleft()
        into[: message.size] = message
        return message.size

    def meet(
        self, name: tuple[int, ...], members: Sequence[int], me: int
    ) -> tuple[tuple[int, ...], int]:
        """Those members of a group that are left, once all have come here or ended."""
        return self.left.meet(name, members, me, self.ended)

    def end(self, rank: int | None, error: BaseException | None) -> None:
        """A worker, or with None the program, has ended; an error may end everybody's waiting."""
        with self.lock:
            if rank is not None:
                self.ended[rank] = error
            goes_on = self.fault_tolerant and rank is not None
            if error is not None and self.first_error is None and not goes_on:
                self.first_failed, self.first_error = rank, error


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

    def close(self) -> None:
        pass


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
