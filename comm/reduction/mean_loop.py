"""The shifted mean as a compiled loop: one pass over memory where numpy needs several over cache.

``localsgd.comm.compiled`` says when there is such a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, TypeAlias

import numpy as np

from ..compiled import Later, compiled
from ..contract import Array

# So many numbers at a time, which stay in the first-level cache.
_STRIP = 1024
# Of more arrays the compiler does not find out whether they overlap, and does one number at a time.
_MOST_AT_ONCE = 16

# Ranks may be threads that want the same loop at once.
_ONE_MAKES = Lock()

Step: TypeAlias = Callable[..., tuple[Any, ...]]
Mean: TypeAlias = Callable[[tuple[Array, ...], Array, Any, bool, tuple[Array, ...]], None]


def mean_in_place(
    dtype: np.dtype[Any],
    count: int,
    by_division: bool,
    step: Step | None = None,
    kept: int = 0,
    numbers: int = 0,
    *,
    finite: bool = False,
) -> Callable[..., bool | None] | None:
    """``mean(*parts, *weights, total)`` for so many parts, which all become their mean.

    The parts have one shape ``(n,)`` and dtype, float32 or float64; of that dtype are the weights,
    one for each part but the first, and ``total``, as for ``compiled_mean``. One loop reads and
    writes every part once: a third faster than strips, which fetch each part by fits and starts.

    With the step of a ``ScalarRule`` the parts become its result, and the loop takes so many arrays
    that it keeps and so many numbers besides, after the total.

    Where results are to be ``finite`` the loop returns whether some are not. There parts keep their
    own numbers; where the mean is none, what is kept stays as well.

    None for a single part and for too many, without numba, and while it is being compiled.
    """
    if not count >= 2 or count + kept > _MOST_AT_ONCE:
        return None
    with _ONE_MAKES:
        return _in_place(dtype, count, by_division, step, kept, numbers, finite).loop()


@lru_cache
def _in_place(
    dtype: np.dtype[Any],
    count: int,
    by_division: bool,
    step: Step | None,
    kept: int,
    numbers: int,
    finite: bool,
) -> Later[Callable[..., bool | None]]:
    parts, weights = ([f"{letter}{index}" for index in range(count)] for letter in "pw")
    arrays, after = ([f"{letter}{index}" for index in range(kept)] for letter in "ka")
    constants = [f"n{index}" for index in range(numbers)]
    others = list(zip(parts, weights, strict=True))[1:]
    shift = " + ".join(f"(first - {part}[i]) * {weight}" for part, weight in others)
    before = [f"{array}[i]" for array in arrays]
    combine = ["first = p0[i]", f"mean = first - ({shift}) {'/' if by_division else '*'} total"]
    if step:
        combine.append(f"{', '.join(after)}, = step({', '.join(['mean', *before, *constants])})")
    places = [f"{part}[i]" for part in parts]
    into = dict.fromkeys(places, after[0] if step else "mean")
    moved = dict(zip(before, after, strict=True))
    if finite:
        lines = _finite_loop(combine, into, moved, [*parts, *arrays], dtype)
    else:
        writes = [f"{' = '.join(places)} = {into[places[0]]}"]
        writes += [f"{place} = {value}" for place, value in moved.items()]
        lines = ["for i in range(p0.size):", *_indented([*combine, *writes])]
    arguments = ", ".join([*parts, *weights[1:], "total", *arrays, *constants])

    def make() -> Callable[..., bool | None] | None:
        names: dict[str, Any] = {"np": np, "step": step and compiled(step)}
        exec("\n".join([f"def mean({arguments}):", *_indented(lines)]), names)
        return compiled(names["mean"])

    none, zero = np.empty(0, dtype), dtype.type(0)
    example = [none] * count + [zero] * count + [none] * kept + [zero] * numbers
    return Later(make, *example)


def _finite_loop(
    combine: Sequence[str],
    into: Mapping[str, str],
    moved: Mapping[str, str],
    arrays: Sequence[str],
    dtype: np.dtype[Any],
) -> list[str]:
    """The loop that looks at results before it writes them.

    A strip is computed twice: to see whether all of it is finite, then to write it. It comes from
    memory once, and both loops are plain ones; a loop that chooses number by number what it writes
    took 1.1 to 1.9 times as long, with 2 to 8 parts.

    Args:
        combine: computes one element.
        into, moved: what each place of parts, and of what is kept, becomes.
        arrays: all of them, of which the loop takes strips, each from its first element, since
            numba makes no vectors of indices that begin elsewhere.
    """
    result = next(iter(into.values()))
    # A number without itself is 0, of which all bits are, if it is finite, else NaN.
    looked_at = [f"({value} - {value})" for value in dict.fromkeys(["mean", result])]
    look = [*combine, f"apart[i] = {' + '.join(looked_at)}"]
    writes = [f"{place} = {value}" for place, value in [*into.items(), *moved.items()]]
    choose = ["known = mean - mean == 0", f"finite = known and {result} - {result} == 0"]
    choose += [f"{place} = {value} if finite else {place}" for place, value in into.items()]
    choose += [f"{place} = {value} if known else {place}" for place, value in moved.items()]
    elements = "for i in range(p0.size):"
    return [
        "found = False",
        f"apart = np.empty({_STRIP}, np.{dtype.name})",
        f"bits = apart.view(np.int{8 * dtype.itemsize})",
        *(f"whole_{array} = {array}" for array in arrays),
        f"for start in range(0, whole_p0.size, {_STRIP}):",
        f"    stop = min(start + {_STRIP}, whole_p0.size)",
        *(f"    {array} = whole_{array}[start:stop]" for array in arrays),
        f"    {elements}",
        *_indented(_indented(look)),
        "    any_bit = 0",
        f"    {elements}",
        "        any_bit |= bits[i]",
        "    if any_bit == 0:",
        f"        {elements}",
        *_indented(_indented(_indented([*combine, *writes]))),
        "    else:",
        "        found = True",
        f"        {elements}",
        *_indented(_indented(_indented([*combine, *choose]))),
        "return found",
    ]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def compiled_mean(dtype: np.dtype[Any], count: int, outs: int) -> Mean | None:
    """``mean(parts, weights, total, by_division, outs)`` for so many parts and results.

    Writes ``x - sum_i w_i (x - part_i) / total`` with x the first part to every array of ``outs``,
    which may be parts. All arrays have one shape ``(n,)`` and dtype, float32 or float64, but
    ``weights``, of the same dtype and shape ``(len(parts),)``. ``total`` is the divisor, or its
    reciprocal unless ``by_division``. None as for ``mean_in_place``.
    """
    with _ONE_MAKES:
        return _in_strips(dtype, count, outs).loop()


@lru_cache
def _in_strips(dtype: np.dtype[Any], count: int, outs: int) -> Later[Mean]:
    none = np.empty(0, dtype)
    weights, total = np.ones(count, dtype), dtype.type(1)
    return Later(_jitted_mean, (none,) * count, weights, total, False, (none,) * outs)


@lru_cache(maxsize=1)
def _jitted_mean() -> Mean | None:
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
