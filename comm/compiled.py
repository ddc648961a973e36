"""Loops as machine code, where numba is installed.

Optional (the extra ``compiled``, which is numba): without it numpy does the same, with the same
bits, since neither reorders nor fuses operations. Loading and compiling takes a second or two, so
it is done for large buffers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

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
