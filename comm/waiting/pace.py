"""How time passes for a rank where it is not the machine's: in a simulation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from ..contract import Traffic
from .waiter import Clock


class Pace(Protocol):
    """The time of one rank, in all its groups."""

    def now(self) -> float:
        """Seconds."""

    def pause(self, done: Callable[[], bool]) -> bool:
        """Lets others go on until ``done()``, or until there may be news of them.

        Returns:
            Whether anybody can go on at all.
        """

    def executor(self) -> Executor:
        """What runs a group's work in the background, one thing at a time."""

    def begin(self) -> float:
        """The time at which a verb begins: after what this rank has computed."""

    def ends(self, moved: Callable[[], Traffic], number: int) -> Clock:
        """A clock that tells when verbs of a group end: after what they have moved on the host.

        Args:
            moved: what this rank has moved in the group so far.
            number: names the group; equal on all its ranks.
        """
