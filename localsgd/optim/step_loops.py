"""The arithmetic of a step as compiled loops: one pass over memory where numpy needs many.

``update`` of each optimizer is the formula and the tests' oracle; a loop here does the same
operations in the same order, so the bits are the same, and zeroes the gradient on its way. What
is fixed for a loop (has it momentum?) is compiled in, so that none has a branch inside. Optional,
as ``localsgd.comm.compiled`` says; until one is compiled, it is None. The loops are compiled anew
in every process: numba could keep them on disk, but as pickles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import sqrt
from typing import Any, TypeAlias

import numpy as np

from localsgd.comm.compiled import Later, compiled
from localsgd.comm.contract import Array

Loop: TypeAlias = Callable[..., None]


def sgd_loop(
    dtype: np.dtype[Any], momentum: bool, nesterov: bool, weight_decay: bool
) -> Loop | None:
    """``sgd(params, grad, buffer, fresh, lr, momentum, kept, weight_decay)``, or None.

    The step of ``SGD``; ``fresh`` if the buffer starts, and ``kept`` is 1 - dampening. Without
    momentum ``buffer`` is not touched. All arrays have one shape ``(n,)`` and dtype, float32 or
    float64, and the numbers that dtype. None without numba.
    """
    return _sgd(dtype, momentum, nesterov, weight_decay).loop()


@lru_cache
def _sgd(dtype: np.dtype[Any], momentum: bool, nesterov: bool, weight_decay: bool) -> Later[Loop]:

    def loop(
        params: Array,
        grad: Array,
        buffer: Array,
        fresh: bool,
        lr: Any,
        mu: Any,
        kept: Any,
        decay: Any,
    ) -> None:
        for i in range(params.size):
            direction = grad[i]
            if weight_decay:
                direction += params[i] * decay
            if momentum:
                average = direction if fresh else buffer[i] * mu + direction * kept
                buffer[i] = average
                direction = direction + average * mu if nesterov else average
            params[i] -= direction * lr
            grad[i] = 0

    none, one = np.empty(0, dtype), dtype.type(1)
    return Later(lambda: compiled(loop), *[none] * 3, False, *[one] * 4)


def adam_loop(dtype: np.dtype[Any], l2: bool) -> Loop | None:
    """``adam(params, grad, mean, square, decay, kept1, beta2, kept2, root, eps, length)``.

    The step of ``Adam`` (``l2``: the decay is added to the gradient) and of ``AdamW`` (it is what
    the parameters are multiplied by) without ``amsgrad``. ``kept`` are the betas' complements,
    ``root`` divides the root of ``square``, and ``length`` is the step's. Arrays and numbers as
    for ``sgd_loop``; None without numba.
    """
    return _adam(dtype, l2).loop()


@lru_cache
def _adam(dtype: np.dtype[Any], l2: bool) -> Later[Loop]:

    def loop(
        params: Array,
        grad: Array,
        mean: Array,
        square: Array,
        decay: Any,
        kept1: Any,
        beta2: Any,
        kept2: Any,
        root: Any,
        eps: Any,
        length: Any,
    ) -> None:
        for i in range(params.size):
            slope, param = grad[i], params[i]
            if l2:
                slope += param * decay
            else:
                param *= decay
            first = mean[i] + (slope - mean[i]) * kept1
            second = square[i] * beta2 + slope * slope * kept2
            mean[i], square[i] = first, second
            params[i] = param - first / (sqrt(second) / root + eps) * length
            grad[i] = 0

    none, one = np.empty(0, dtype), dtype.type(1)
    return Later(lambda: compiled(loop), *[none] * 4, *[one] * 7)
