"""Which processes a job has on this machine, and how none of them outlives it.

The launcher adopts what its children leave behind, so that every process of the job stays its
descendant even when mpirun is killed. Only Linux offers this; elsewhere there are no descendants.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose parent has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def dying_with_parent(number: signal.Signals) -> Callable[[], None]:
    """What a child calls first, so that it gets a signal should this process be killed."""
    if sys.platform != "linux":
        return lambda: None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def descendants() -> list[int]:
    """All processes below this one, ended but unreaped ones left out."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name before the last parenthesis may hold anything, spaces included.
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            children[int(parent)].append(int(stat.parent.name))
    found = list(children[os.getpid()])
    for pid in found:
        found.extend(children[pid])
    return found


def kill_descendants() -> None:
    """Kills all processes below this one, and those that they start meanwhile."""
    killed: set[int] = set()
    while found := set(descendants()) - killed:
        for pid in found:
            # One may have ended since, or run as somebody else.
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
