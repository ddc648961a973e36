"""What surrounds every collective: it is counted and timed, and one's own mistakes are told."""

from __future__ import annotations

import os

from ..errors import RankFailure
from ..waiting import Background, Clock
from .entrance import Entrance


class Collective:
    """Counts and times a verb, after whatever runs in the background.

    Attributes:
        calls: verbs so far.
        seconds: spent in them.
        closed: whether no more are allowed.
        forked_from: the rank from which this process was forked, if it was, after the group.
    """

    def __init__(
        self,
        background: Background,
        entrance: Entrance,
        moments: memoryview[float],
        begins: Clock,
        ends: Clock,
    ) -> None:
        """
        Args:
            moments: where to store when a verb begins and when it ends.
            begins, ends: the clocks for that.
        """
        self.calls, self.seconds, self.closed, self.forked_from = 0, 0.0, False, ""
        self._background, self._entrance, self._begins, self._ends = (
            background,
            entrance,
            begins,
            ends,
        )
        self._begin, self._moments = 0.0, moments

    def __enter__(self) -> None:
        if self.closed:
            self.require_open()
        self._background.drain()
        if self._entrance.failed:
            self._entrance.require_part()
        self._moments[0] = self._begin = self._begins()

    def require_open(self) -> None:
        if self.forked_from:
            raise RuntimeError(
                "a communicator must be used in the process that is its rank, got process "
                f"{os.getpid()}, forked from {self.forked_from}; world() gives it a group of one"
            )
        if self.closed:
            raise ValueError("the communicator must be open, got one that was closed")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.calls += 1
        self._moments[1] = end = self._ends()
        self.seconds += end - self._begin
        if error is None:
            return
        if isinstance(error, RankFailure) or not isinstance(error, Exception):
            # It has left a collective in the middle, as an interrupt from the keyboard does, too.
            self._entrance.fail(error)


class OwnErrors:
    """Lets the other ranks know of an error in this rank's arguments."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            self._entrance.enter_with_error(error)
