"""The mailboxes of simulated workers: a message is there once it has arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localsgd.comm.contract import Array
from localsgd.comm.transports import Key, Office
from localsgd.simulate.roads import Roads
from localsgd.simulate.turns import Actor, Stage


class Post(Office):
    """What simulated workers share.

    Attributes:
        joined: the workers that have met all others; until then their messages take no time.
    """

    def __init__(
        self, actors: Mapping[int, Actor], stage: Stage, roads: Roads, *, fault_tolerant: bool
    ) -> None:
        super().__init__(len(actors), fault_tolerant=fault_tolerant)
        self.joined: set[int] = set()
        self._actors, self._stage, self._roads = actors, stage, roads
        # When the messages of every box arrive, in their order.
        self._arrivals: dict[Key, list[float]] = {}
        self._last_arrival = [0.0] * len(actors)
        self._here: dict[tuple[int, ...], set[int]] = {}
        self._left: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}

    def enter(self, rank: int) -> None:
        self._actors[rank].await_turn()

    def put(self, key: Key, message: Array, sender: int, receiver: int) -> None:
        now = arrives = self._stage.now
        if sender in self.joined:
            arrives = self._roads.arrival_s(now, message.size, sender, receiver)
        super().put(key, message, sender, receiver)
        self._arrivals.setdefault(key, []).append(arrives)
        self._last_arrival[sender] = max(self._last_arrival[sender], arrives)
        self._stage.notify(receiver, arrives)

    def take(self, key: Key, into: Array, *, exact: bool) -> int | None:
        arrivals = self._arrivals.get(key)
        if not arrivals or arrivals[0] > self._stage.now:
            return None
        length = super().take(key, into, exact=exact)
        del arrivals[0]
        return length

    def meet(
        self, name: tuple[int, ...], members: Sequence[int], me: int
    ) -> tuple[tuple[int, ...], int]:
        here = self._here.setdefault(name, set())
        here.add(me)
        self._stage.alarm()

        def all_have_come() -> bool:
            return name in self._left or all(m in here or m in self.ended for m in members)

        while not all_have_come():
            self._stage.wait(self._actors[me], all_have_come)
        if name not in self._left:
            found = tuple(member for member in members if member in here)
            self._left[name] = found, len(self._left) + 1
        return self._left[name]

    def end(self, rank: int | None, error: BaseException | None) -> None:
        if rank is None:
            super().end(rank, error)
            self._stage.alarm()
            return
        # Who has ended is not waited for any more, so what it has sent is to arrive before.
        self._stage.sleep(self._actors[rank], self._last_arrival[rank])
        super().end(rank, error)
        self._stage.end(self._actors[rank])
