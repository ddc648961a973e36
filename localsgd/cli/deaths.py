"""In which order the ranks of this host end; only Linux tells.

MPICH names a rank that a signal has ended, but as soon as one is gone it kills the others, and may
name one of those.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterable


class Deaths:
    """Processes that are looked at until they end.

    Attributes:
        order: those that have ended, the first first.
    """

    def __init__(self) -> None:
        self.order: list[int] = []
        self._handles: dict[int, int] = {}
        # Gives what has happened in the order in which it has.
        self._events = select.epoll() if sys.platform == "linux" else None

    def expect(self, pids: Iterable[int]) -> None:
        """Takes in processes that are not known yet, by their number."""
        if self._events is None:
            return
        for pid in set(pids) - set(self._handles.values()) - set(self.order):
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                self.order.append(pid)
                continue
            self._handles[handle] = pid
            self._events.register(handle, select.EPOLLIN)

    def look(self) -> None:
        """Notes who has ended since."""
        if self._events is None:
            return
        for handle, _ in self._events.poll(0):
            self._events.unregister(handle)
            self.order.append(self._handles.pop(handle))
            os.close(handle)

    def close(self) -> None:
        """Looks at nobody any more."""
        if self._events is not None:
            self._events.close()
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()
