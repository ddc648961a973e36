"""The shifted mean as a compiled loop: one pass over memory where numpy needs several over cache.

``localsgd.comm.compiled`` says when there is such a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ..compiled import compiled
from ..contract import Array

# So many numbers at a time, which stay in the first-level cache.
_STRIP = 1024
# Of more arrays the compiler does not find out whether they overlap, and does one number at a time.
_MOST_AT_ONCE = 16

Step: TypeAlias = Callable[..., tuple[Any, ...]]
Mean: TypeAlias = Callable[[tuple[Array, ...], Array, Any, bool, tuple[Array, ...]], None]


@lru_cache
def mean_in_place(
    count: int, by_division: bool, step: Step | None = None, kept: int = 0, numbers: int = 0
) -> Callable[..., None] | None:
    """``mean(*parts, *weights, total)`` for so many parts, which all become their mean; or None.

    The parts have one shape ``(n,)`` and dtype, float32 or float64; of that dtype are the weights,
    one for each part but the first, and ``total``, as for ``compiled_mean``. One loop reads and
    writes every part once: a third faster than strips, which fetch each part by fits and starts.

    With the step of a ``ScalarRule`` the parts become its result, and the loop takes so many arrays
    that it keeps and so many numbers besides, after the total.
    """
    if not count >= 2 or count + kept > _MOST_AT_ONCE:
        return None
    parts, weights = ([f"{letter}{index}" for index in range(count)] for letter in "pw")
    arrays = [f"k{index}" for index in range(kept)]
    constants = [f"n{index}" for index in range(numbers)]
    others = list(zip(parts, weights, strict=True))[1:]
    before = [f"{array}[i]" for array in arrays]
    after = ", ".join(["result", *before[1:]])
    source = f"""
def mean({", ".join([*parts, *weights[1:], "total", *arrays, *constants])}):
    for i in range(p0.size):
        first = p0[i]
        shift = {" + ".join(f"(first - {part}[i]) * {weight}" for part, weight in others)}
        result = first - shift {"/" if by_division else "*"} total
        {f"{after}, = step({', '.join(['result', *before, *constants])})" if step else ""}
        {" = ".join([f"{part}[i]" for part in parts] + before[:1])} = result
"""
    names: dict[str, Any] = {"step": step and compiled(step)}
    exec(source, names)
    return compiled(names["mean"])


@lru_cache(maxsize=1)
def compiled_mean() -> Mean | None:
    """``mean(parts, weights, total, by_division, outs)``, or None without numba.

    Writes ``x - sum_i w_i (x - part_i) / total`` with x the first part to every array of ``outs``,
    which may be parts. All arrays have one shape ``(n,)`` and dtype, float32 or float64, but
    ``weights``, of the same dtype and shape ``(len(parts),)``. ``total`` is the divisor, or its
    reciprocal unless ``by_division``.
    """
    return compiled(_mean)


def _mean(
    parts: tuple[Array, ...],
    weights: Array,
    total: Any,
    by_division: bool,
    outs: tuple[Array, ...],
) -> None:
    count = parts[0].size
    strip = np.empty(_STRIP, parts[0].dtype)
    for start in range(0, count, _STRIP):
        length = min(_STRIP, count - start)
        first = parts[0][start : start + length]
        part, weight = parts[1][start : start + length], weights[1]
        for i in range(length):
            strip[i] = (first[i] - part[i]) * weight
        for index in range(2, len(parts)):
            part, weight = parts[index][start : start + length], weights[index]
            for i in range(length):
                strip[i] += (first[i] - part[i]) * weight
        if by_division:
            for i in range(length):
                strip[i] = first[i] - strip[i] / total
        else:
            for i in range(length):
                strip[i] = first[i] - strip[i] * total
        for out in outs:
            target = out[start : start + length]
            for i in range(length):
                target[i] = strip[i]
