"""Tells the ranks that still wait that this process has ended, however it ends in order."""

from __future__ import annotations

import atexit
import os
from typing import Protocol
from weakref import WeakSet


class Leaving(Protocol):
    """What others may wait for."""

    def leave(self) -> None:
        """Says that this rank takes part no more."""


_OPEN: WeakSet[Leaving] = WeakSet()


def leave_at_exit(group: Leaving) -> None:
    """Calls ``group.leave()`` when the process ends, if the group is still there.

    The end of a forked copy of the process is not meant.
    """
    _OPEN.add(group)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_OPEN.clear)


@atexit.register
def leave_all() -> None:
    """Leaves every group that is open."""
    for group in _OPEN:
        group.leave()
