"""The last words of a process that is about to take its job down."""

from __future__ import annotations

import fcntl
import os
import stat
import termios
import time
from contextlib import suppress
from typing import TextIO

_NAP_S = 1e-3


def let_be_read(stream: TextIO, limit_s: float = 1.0) -> None:
    """Writes a stream out, and returns once the launcher has read it if it is a pipe.

    A launcher that is told to end a job does so, and looks at no pipe any more (MPICH's).
    """
    stream.flush()
    # Some streams are no files.
    with suppress(OSError, ValueError):
        pipe, last = stream.fileno(), time.monotonic() + limit_s
        while stat.S_ISFIFO(os.fstat(pipe).st_mode) and time.monotonic() < last:
            if not any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))):
                return
            time.sleep(_NAP_S)
