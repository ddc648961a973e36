"""What workers share that are threads: mailboxes, who has ended, and a door for new ones."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

from ..contract import Array, Json
from ..errors import MismatchError, RankFailure, require_length

Key = tuple[tuple[int, ...], int, int, int]
Name = tuple[int, ...]

_LOOK_AGAIN_S = 0.01


class Left:
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
        workers: how many there have been so far; they are numbered from 0.
        ended: how each worker has ended that has.
    """

    def __init__(self, size: int, *, fault_tolerant: bool, respawn: bool = False) -> None:
        self.size, self.fault_tolerant, self.respawn = size, fault_tolerant, respawn
        self.left, self.door = Left(), Door()
        self.workers = size
        # Runs the program in a worker of that number.
        self.start: Callable[[int], None] = lambda worker: None
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

    def summon(self, starter: int) -> None:
        """Starts one worker more."""
        with self.lock:
            worker, self.workers = self.workers, self.workers + 1
        self.door.expect(worker, starter)
        self.start(worker)

    def end(self, rank: int | None, error: BaseException | None) -> None:
        """A worker, or with None the program, has ended; an error may end everybody's waiting."""
        with self.lock:
            if rank is not None:
                self.ended[rank] = error
            goes_on = self.fault_tolerant and rank is not None
            if error is not None and self.first_error is None and not goes_on:
                self.first_failed, self.first_error = rank, error


class Door:
    """Where workers wait that have been started to join others."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._starters: dict[int, int] = {}
        self._offers: dict[int, Json] = {}
        self._refused: dict[int, str] = {}
        self._admitted: dict[int, tuple[Sequence[int], Name, Json]] = {}

    def expect(self, worker: int, starter: int) -> None:
        """Notes who has started a worker."""
        with self._changed:
            self._starters[worker] = starter

    def expected(self, starter: int, ended: Mapping[int, object]) -> list[int]:
        """The workers that one has started, which may join yet."""
        with self._changed:
            settled = {*self._refused, *self._admitted, *ended}
            return [w for w, s in self._starters.items() if s == starter and w not in settled]

    def offers(self, starter: int, ended: Mapping[int, object]) -> list[tuple[int, Json]]:
        """What those of them offer that wait."""
        expected = self.expected(starter, ended)
        with self._changed:
            return [(w, self._offers[w]) for w in expected if w in self._offers]

    def refuse(self, worker: int, reason: str) -> None:
        with self._changed:
            self._refused[worker] = reason
            self._changed.notify_all()

    def admit(self, worker: int, members: Sequence[int], name: Name, facts: Json) -> None:
        with self._changed:
            self._admitted[worker] = members, name, facts
            self._changed.notify_all()

    def wait(
        self, worker: int, offer: Json, ended: Mapping[int, object]
    ) -> tuple[Sequence[int], Name, Json]:
        """The members, name and facts of the group that admits this worker.

        Raises:
            MismatchError: if it is refused.
            RankFailure: if who has started it is no more.
        """
        with self._changed:
            self._offers[worker] = offer
            while worker not in self._admitted:
                if worker in self._refused:
                    raise MismatchError(f"the others refuse this worker: {self._refused[worker]}")
                if self._starters[worker] in ended:
                    raise RankFailure("the workers that this one was to join are no more", [])
                self._changed.wait(_LOOK_AGAIN_S)
            return self._admitted[worker]
