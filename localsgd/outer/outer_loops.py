"""The arithmetic of outer steps as compiled loops, with the bits of the formulas in numpy.

Optional, as ``localsgd.comm.compiled`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from localsgd.comm.compiled import compiled
from localsgd.comm.contract import Array


@lru_cache
def sgd_loop(nesterov: bool) -> Callable[..., None] | None:
    """``sgd(mean, delta, buffer, rest, momentum, pull)``, or None without numba.

    The step of ``outer.SGD`` with momentum: ``rest`` is 1 - lr and ``pull`` lr · momentum. All
    arrays have one shape ``(n,)`` and dtype, float32 or float64, and the numbers that dtype.
    """

    def loop(mean: Array, delta: Array, buffer: Array, rest: Any, momentum: Any, pull: Any) -> None:
        for i in range(mean.size):
            old = buffer[i]
            new = old * momentum + delta[i]
            buffer[i] = new
            value = mean[i] + delta[i] * rest if rest != 0 else mean[i]
            mean[i] = value - (new if nesterov else old) * pull

    return compiled(loop)
