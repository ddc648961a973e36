"""What the end of this process means to the other ranks: its groups are left.

If an error that nobody has caught ends it, the others are told of that. A forked copy of the
process is no rank: its groups are not its own, and its end is that of nobody.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol
from weakref import WeakSet

from .copies import end_copy_early
from .launched import mark_copy


class Leaving(Protocol):
    """What others may wait for."""

    def leave(self) -> None:
        """Says that this rank takes part no more."""

    def check(self) -> None:
        """Raises RankFailure if another has failed."""

    def fail(self, error: BaseException) -> None:
        """Says that this rank takes part no more, as it ends of an error."""

    def disown(self) -> None:
        """Makes a copy in a forked process unusable; says nothing to the others."""


_OPEN: WeakSet[Leaving] = WeakSet()


def leave_at_exit(group: Leaving) -> None:
    """Calls ``group.leave()`` when the process ends, if the group is still there.

    The end of a forked copy of the process is not meant: there it is ``group.disown()`` at once.
    """
    _OPEN.add(group)


@atexit.register
def leave_all() -> None:
    """Leaves every group that is open, because of an error if one ends this process."""
    # At a prompt an error ends nothing.
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    if error is not None:
        fail_all(error)
    for group in _OPEN:
        group.leave()


def check_all() -> None:
    """Raises RankFailure if another process has failed in a group that is open."""
    for group in _OPEN:
        group.check()


def fail_all(error: BaseException) -> None:
    """Takes this process, which ends of an error, out of every group that is open."""
    for group in _OPEN:
        group.fail(error)


def _become_copy() -> None:
    for group in list(_OPEN):
        group.disown()
    _OPEN.clear()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        end_copy_early()
        mark_copy()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_become_copy)
