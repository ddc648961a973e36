"""Whose turn it is: threads that run one at a time, in the order of virtual time.

A thread keeps its turn until it waits for a time, or for something that others do. Then the next
one goes on that can, in the order in which they could; if none can, time moves on to the next
event. So nothing depends on the machine, and no thread polls: what a thread waits for is asked
again only after one of its place has had a turn, or an event concerns it.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

Done = Callable[[], bool]


class Actor:
    """One thread.

    Attributes:
        worker: whose it is.
        place: what its worker shares with others without a message.
        done: what it waits for, if it does.
        stuck: whether it was woken since nobody could go on.
        alarms: after how many of the stage it has looked around.
    """

    def __init__(self, worker: int, place: int) -> None:
        self.worker, self.place = worker, place
        self.done: Done | None = None
        self.stuck = False
        self.alarms = 0
        self._turn = threading.Lock()
        self._turn.acquire()

    def give_turn(self) -> None:
        self._turn.release()

    def await_turn(self) -> None:
        self._turn.acquire()


class Stage:
    """The threads of a simulation, and its time.

    Attributes:
        now: seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._ready: deque[Actor] = deque()
        self._events: list[tuple[float, int, Actor | None, int]] = []
        self._order = count()
        self._of_place: dict[int, dict[Actor, None]] = {}
        self._of_worker: dict[int, dict[Actor, None]] = {}
        # Where something may have changed. Dictionaries, since they keep their order.
        self._changed_places: dict[int, None] = {}
        self._changed_workers: dict[int, None] = {}
        self._alarms = 0
        self._alarm = self._alarmed = False

    def add(self, actor: Actor) -> None:
        """Lets a thread take part, which is to await its turn; from one that has it."""
        self._ready.append(actor)

    def begin(self) -> None:
        """Gives the first its turn."""
        self._ready.popleft().give_turn()

    def end(self, actor: Actor) -> None:
        """The thread that has the turn takes no more part; who waits is to look around."""
        self.alarm()
        following = self._next(actor)
        if following is not None:
            following.give_turn()

    def sleep(self, actor: Actor, until: float) -> None:
        """Returns at that time; the thread that calls has the turn."""
        if until > self.now:
            heapq.heappush(self._events, (until, next(self._order), actor, actor.worker))
            self._switch(actor)

    def wait(self, actor: Actor, done: Done) -> bool:
        """Returns when ``done()``, or when others have ended; the thread that calls has the turn.

        Returns:
            Whether anybody can go on.
        """
        if actor.alarms != self._alarms:
            actor.alarms = self._alarms
            return True
        actor.done, actor.stuck = done, False
        self._of_place.setdefault(actor.place, {})[actor] = None
        self._of_worker.setdefault(actor.worker, {})[actor] = None
        self._switch(actor)
        return not actor.stuck

    def notify(self, worker: int, at: float) -> None:
        """At that time something happens that a worker may be waiting for."""
        if at <= self.now:
            self._changed_workers[worker] = None
        else:
            heapq.heappush(self._events, (at, next(self._order), None, worker))

    def alarm(self) -> None:
        """Lets everyone look around who waits, or comes to wait."""
        self._alarm = True
        self._alarms += 1

    def _switch(self, actor: Actor) -> None:
        following = self._next(actor)
        assert following is not None
        if following is not actor:
            following.give_turn()
            actor.await_turn()

    def _next(self, before: Actor) -> Actor | None:
        """Whose turn it is after that of ``before``; None if all have ended."""
        self._changed_places[before.place] = None
        while not self._ready:
            if self._alarm:
                self._alarm = False
                self._wake(self._all_waiting())
            elif self._ask_changed() or self._go_on_to_next_event():
                self._alarmed = False
            elif waiting := self._all_waiting():
                # All look around once before they give up.
                for actor in waiting:
                    actor.stuck = self._alarmed
                self._alarmed = not self._alarmed
                self._wake(waiting)
            else:
                return None
        return self._ready.popleft()

    def _ask_changed(self) -> bool:
        """Whether something has changed and been looked at."""
        if not (self._changed_places or self._changed_workers):
            return False
        asked: dict[Actor, None] = {}
        for place in self._changed_places:
            asked.update(self._of_place.get(place, {}))
        for worker in self._changed_workers:
            asked.update(self._of_worker.get(worker, {}))
        self._changed_places.clear()
        self._changed_workers.clear()
        ready = [actor for actor in asked if _is_over(actor)]
        self._wake(ready)
        return bool(ready)

    def _go_on_to_next_event(self) -> bool:
        if not self._events:
            return False
        self.now = self._events[0][0]
        while self._events and self._events[0][0] == self.now:
            _, _, actor, worker = heapq.heappop(self._events)
            if actor is None:
                self._changed_workers[worker] = None
            else:
                self._ready.append(actor)
        return True

    def _all_waiting(self) -> list[Actor]:
        return [actor for actors in self._of_place.values() for actor in actors]

    def _wake(self, actors: Iterable[Actor]) -> None:
        for actor in actors:
            del self._of_place[actor.place][actor]
            del self._of_worker[actor.worker][actor]
            self._ready.append(actor)


def _is_over(actor: Actor) -> bool:
    """Whether a wait is; an error is for the thread that waits, which will ask itself."""
    assert actor.done is not None
    try:
        return actor.done()
    except Exception:
        return True
