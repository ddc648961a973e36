"""How a forked copy of a rank ends: as Python does, but before its libraries, with its own code.

In C, as the last thing of all, mpi4py and the MPI library end MPI in every copy, too, which waits
there for ever or takes the job down; torch's groups wait alike. So a copy ends itself just before.
Python does not say with which code it is about to end, and it is noted on the way:
``raise SystemExit(3)`` in place of ``sys.exit(3)`` is not seen.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn


class _Ending:
    """Ends the process when the interpreter drops it."""

    def __init__(self) -> None:
        self.code = 0

    def __del__(self, end: Callable[[int], NoReturn] = os._exit) -> None:
        end(self.code)


def end_copy_early() -> None:
    """Lets this process, a forked copy, end as Python does, but for what follows in C."""
    ending, show = _Ending(), sys.excepthook

    def note_exit(status: object = None, /) -> NoReturn:
        if threading.current_thread() is threading.main_thread():
            ending.code = status if isinstance(status, int) else int(status is not None)
        raise SystemExit(status)

    def note_error(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        ending.code = 1
        show(kind, error, trace)

    sys.exit, sys.excepthook = note_exit, note_error
    # Python clears ``sys`` when all other modules are gone and all is written.
    vars(sys)["localsgd_ending"] = ending
