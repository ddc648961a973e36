"""Loops as machine code, where numba is installed.

Optional (the extra ``compiled``, which is numba): without it numpy does the same, with the same
bits, since neither reorders nor fuses operations. Loading and compiling takes a second or two, so
it is done for large buffers alone, and where numpy's time is bearable meanwhile in the background:
after a loss nobody waits for a compiler. ``LOCALSGD_COMPILE=first`` waits, as measurements do.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Generic, TypeVar

LARGE_BYTES = 1 << 20

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop | None:
    """The function as machine code, compiled at its first call for the types given; or None.

    Bits stay, since nothing is reordered or fused, and a division by zero is what numpy makes
    of it. It runs without the interpreter's lock.
    """
    if find_spec("numba") is None:
        return None
    import numba

    return numba.njit(loop, nogil=True, error_model="numpy")  # type: ignore[no-any-return]


class Later(Generic[Loop]):
    """A loop that is compiled in the background from now on."""

    def __init__(self, make: Callable[[], Loop | None], *example: object) -> None:
        """
        Args:
            make: makes it, by ``compiled``.
            example: arguments of the types it is compiled for, with which it is called and does
                nothing: empty arrays, say.
        """
        self._make, self._example = make, example
        self._loop: Loop | None = None
        self._error: BaseException | None = None
        if find_spec("numba") is None:
            return
        if os.environ.get("LOCALSGD_COMPILE") == "first":
            self._compile()
            return
        # Waited for where the process ends or forks: a child's half-loaded compiler would hang it.
        thread = threading.Thread(target=self._compile, name="localsgd-compile")
        _RUNNING.add(thread)
        thread.start()

    def loop(self) -> Loop | None:
        """The loop, or None as long as it is being compiled, and without numba."""
        if self._error is not None:
            raise self._error
        return self._loop

    def _compile(self) -> None:
        try:
            loop = self._make()
            assert loop is not None
            loop(*self._example)
            self._loop = loop
        except BaseException as error:
            self._error = error
        finally:
            _RUNNING.discard(threading.current_thread())


def settle(timeout_s: float | None = None) -> None:
    """Returns once no loop is being compiled any more, or after so long for each."""
    for thread in [*_RUNNING]:
        thread.join(timeout_s)


_RUNNING: set[threading.Thread] = set()
# ``logging`` holds its lock during a fork, which a compiler wants: hooks run in reverse order, so
# ours, since it comes later, runs before it takes that.
assert logging
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: settle(10.0))
