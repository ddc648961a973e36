"""Tells the ranks that still wait that this process has ended, however it ends in order."""

from __future__ import annotations

import atexit
from typing import Protocol
from weakref import WeakSet


class Leaving(Protocol):
    """What others may wait for."""

    def leave(self) -> None:
        """Says that this rank takes part no more."""


_OPEN: WeakSet[Leaving] = WeakSet()


def leave_at_exit(group: Leaving) -> None:
    """Calls ``group.leave()`` when the process ends, if the group is still there."""
    _OPEN.add(group)


@atexit.register
def _leave_all() -> None:
    for group in _OPEN:
        group.leave()
