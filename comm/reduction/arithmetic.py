"""How several ranks' numbers become one: the shifted mean, and plain sum, max and min.

    mean = x_f - sum_i w_i (x_f - x_i) / W        f: the first with weight above 0,  W = sum_i w_i

in rank order, in float32 (float64 for float64), rounded once to the buffer's dtype. Where all
inputs are equal every difference is +0.0, so the result has the bits of the input, signed zeros
included; summing first and dividing later changes 14 % of float32 elements at three ranks. The
same function serves both levels: ranks of a host, and hosts.

Values of opposite sign near the dtype's maximum overflow, and equal infinities become NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import Array, Op, ScalarRule
from ..dtypes import FLOATS, work_dtype
from ..errors import NoWeight
from .mean_loop import compiled_mean, mean_in_place

_BLOCK = 32_768


def scaled_weights(weights: Sequence[float]) -> list[float]:
    """The weights over a power of two, so that they fit float32; equal weights become 1.

    Neither changes the mean that is meant, and a power of two changes no bit of it.
    """
    positive = [weight for weight in weights if weight > 0]
    if not positive:
        raise NoWeight(f"one rank's weight must be above 0, got 0 on all {len(weights)} ranks")
    if min(positive) == max(positive):
        return [1.0 if weight > 0 else 0.0 for weight in weights]
    _, exponent = math.frexp(max(positive))
    return [math.ldexp(weight, -exponent) for weight in weights]


class Scratch:
    """Reused memory for combining blocks of up to ``length`` elements; one per thread of use."""

    def __init__(self, length: int, dtype: np.dtype[Any], *, large: bool = False) -> None:
        """``large`` if it is for buffers that are worth compiling a loop for."""
        self.work = work_dtype(dtype)
        self._compiled = large and dtype in FLOATS[2:]
        self._shift, self._difference, self._widened = np.empty((3, length), self.work)
        self._result = np.empty(length, dtype)

    def combine(
        self, op: Op, parts: Sequence[Array], weights: Sequence[float], outs: Sequence[Array] = ()
    ) -> Array:
        """The parts, each of shape ``(n,)``, combined in order.

        Args:
            outs: where to write the result, perhaps to parts; without any, it is written to
                memory that is valid until the next call.
        """
        outs = outs or [self._result[: parts[0].size]]
        if op == "mean":
            if min(weights) <= 0:
                used = [i for i, weight in enumerate(weights) if weight > 0]
                parts, weights = [parts[i] for i in used], [weights[i] for i in used]
            self._mean(parts, weights, outs)
        else:
            self._fold(op, parts, outs[0])
            _copy_first(outs)
        return outs[0]

    def loop_of(
        self, op: Op, weights: Sequence[float], rule: ScalarRule | None, *, finite: bool
    ) -> Callable[[slice, Sequence[Array]], bool] | None:
        """``loop(place, parts)``: makes every part what a rule, if any, makes of their mean.

        None where nothing compiled does that, or not yet; else no part is too long. ``place`` is
        where in this rank's shard the parts are. If the results are to be ``finite`` the loop
        returns whether they are, and leaves alone what is not; else it returns True.
        """
        if not self._compiled or op != "mean" or min(weights) <= 0:
            return None
        factor, by_division = self._factor(sum(weights))
        step, kept, numbers = None, list[Array](), list[Any]()
        if rule is not None:
            step, kept = rule.step, list(rule.kept)
            numbers = [*map(self.work.type, rule.numbers)]
        shape = len(weights), by_division, step, len(kept), len(numbers)
        loop = mean_in_place(self.work, *shape, finite=finite)
        if loop is None:
            return None
        before = [*map(self.work.type, weights[1:]), factor]

        def update(place: slice, parts: Sequence[Array]) -> bool:
            return not loop(*parts, *before, *(array[place] for array in kept), *numbers)

        return update

    def _factor(self, total: float) -> tuple[Any, bool]:
        """What divides by ``total`` or, if it gives the same bits, multiplies by its reciprocal."""
        exact = _has_exact_reciprocal(total)
        return self.work.type(1.0 / total if exact else total), not exact

    def _mean(
        self, parts: Sequence[Array], weights: Sequence[float], outs: Sequence[Array]
    ) -> None:
        """Writes to ``outs`` last, so that they may be parts."""
        total = sum(weights)
        if len(parts) == 1:
            outs[0][...] = parts[0]
            _copy_first(outs)
            return
        kernel = compiled_mean(self.work, len(parts), len(outs)) if self._compiled else None
        if kernel is not None:
            factor, by_division = self._factor(total)
            numbers = np.array(weights, self.work)
            kernel(tuple(parts), numbers, factor, by_division, tuple(outs))
        else:
            self._mean_in_steps(parts, weights, total, outs[0])
            _copy_first(outs)

    def _mean_in_steps(
        self, parts: Sequence[Array], weights: Sequence[float], total: float, result: Array
    ) -> None:
        count = result.size
        # Half precisions are widened once; the others are read where they lie.
        narrow = result.dtype != self.work
        shift, difference, first = self._shift[:count], self._difference[:count], parts[0]
        if narrow:
            widened = self._widened[:count]
            widened[...] = first
            first = widened
        for index in range(1, len(parts)):
            part, weight = parts[index], weights[index]
            target = shift if index == 1 else difference
            if narrow:
                np.subtract(first, part, out=target, dtype=self.work, casting="same_kind")
            else:
                np.subtract(first, part, target)
            if weight != 1.0:
                np.multiply(target, weight, target)
            if index > 1:
                np.add(shift, difference, shift)
        if _has_exact_reciprocal(total):
            np.multiply(shift, 1.0 / total, shift)
        else:
            np.divide(shift, total, shift)
        if narrow:
            np.subtract(first, shift, out=result, casting="same_kind")
        else:
            np.subtract(first, shift, result)

    def _fold(self, op: Op, parts: Sequence[Array], result: Array) -> None:
        fold = {"sum": np.add, "min": np.minimum, "max": np.maximum}[op]
        total = self._shift[: result.size]
        total[...] = parts[0]
        for part in parts[1:]:
            fold(total, part, out=total, casting="same_kind")
        result[...] = total


def _copy_first(arrays: Sequence[Array]) -> None:
    for array in arrays[1:]:
        array[...] = arrays[0]


def _has_exact_reciprocal(number: float) -> bool:
    """Whether multiplying by 1 / number gives the bits of dividing by it: powers of two."""
    return math.frexp(number)[0] == 0.5


def shifted_mean(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    """The mean above of whole arrays, each of shape ``(n,)``; a new one, with the bits of a round.

    Raises:
        NoWeight: if the weights sum to 0.
    """
    scaled, made = scaled_weights(weights), np.empty_like(parts[0])
    scratch = Scratch(min(made.size, _BLOCK), made.dtype)
    for start in range(0, made.size, _BLOCK):
        here = slice(start, start + _BLOCK)
        scratch.combine("mean", [part[here] for part in parts], scaled, [made[here]])
    return made


def blend(own: Array, result: Array, mix: float, out: NDArray[Any]) -> None:
    """Writes ``result + mix (own - result)`` to ``out``: all of it in the wider dtype."""
    work = work_dtype(own.dtype)
    wide = result.astype(work)
    out[...] = wide + mix * (own.astype(work) - wide)
