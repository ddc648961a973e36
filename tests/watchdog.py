"""Ends a test that hangs, after every rank has said where it stands."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def watched(seconds: float) -> Iterator[None]:
    """Prints every thread's stack after ``seconds`` and ends the process a little later.

    The pause lets the other ranks of an MPI job, which the launcher ends with the first, print
    theirs.
    """
    faulthandler.dump_traceback_later(seconds, file=sys.__stderr__)
    killer = threading.Timer(seconds + 3, os._exit, [1])
    killer.daemon = True
    killer.start()
    try:
        yield
    finally:
        killer.cancel()
        faulthandler.cancel_dump_traceback_later()
