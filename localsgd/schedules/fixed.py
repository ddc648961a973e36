"""When workers average: pure functions of the number of local steps completed.

A schedule sees nothing but the step, so every rank decides alike, and a resumed run needs no
more state than the step. Two phases exist in the field: the papers' (after steps p, 2p, …) in
``every``, and PyTorch's (the first average right after the first step past warm-up) in
``post_local`` and ``aligned``.

Sources: Stich, Local SGD (arXiv 1805.09767); Lin et al., post-local SGD (arXiv 1808.07217);
torch.distributed.algorithms.model_averaging (PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from localsgd.checks import checked_count, name_of


@runtime_checkable
class Schedule(Protocol):
    """Decides after which local steps the workers average."""

    def due(self, step: int) -> bool:
        """Whether a round follows local step number ``step``, counted from 1."""


@dataclass(frozen=True)
class _Every:
    period: int
    synchronous_steps: int
    warmup_steps: int

    def due(self, step: int) -> bool:
        if step <= self.synchronous_steps:
            return step >= 1
        past = step - self.synchronous_steps - self.warmup_steps
        return past > 0 and past % self.period == 0

    def __repr__(self) -> str:
        if self.synchronous_steps:
            return f"every({self.period}, synchronous_steps={self.synchronous_steps})"
        if self.warmup_steps:
            return f"every({self.period}, warmup_steps={self.warmup_steps})"
        return f"every({self.period})"


@dataclass(frozen=True)
class _PostLocal:
    period: int
    warmup_steps: int

    def due(self, step: int) -> bool:
        past = step - 1 - self.warmup_steps
        return past >= 0 and past % self.period == 0

    def __repr__(self) -> str:
        return f"post_local({self.period}, warmup_steps={self.warmup_steps})"


@dataclass(frozen=True)
class _Aligned:
    period: int
    warmup_steps: int

    def due(self, step: int) -> bool:
        before = step - 1
        return before >= self.warmup_steps and before % self.period == 0

    def __repr__(self) -> str:
        return f"aligned({self.period}, warmup_steps={self.warmup_steps})"


@dataclass(frozen=True)
class _When:
    function: Callable[[int], bool]
    warmup_steps: int

    def due(self, step: int) -> bool:
        return bool(self.function(step))

    def __repr__(self) -> str:
        return f"when({name_of(self.function)}, warmup_steps={self.warmup_steps})"


def every(period: int, *, synchronous_steps: int = 0, warmup_steps: int = 0) -> Schedule:
    """After steps p, 2p, 3p, …: every local phase is ``period`` steps long.

    With ``synchronous_steps`` s the workers first stay together, averaging after each of steps
    1 to s; then come steps s+p, s+2p, …. ``every(1)`` is synchronous SGD. With ``warmup_steps``
    w they come after w+p, w+2p, …, and before that none: a gradient stage averages meanwhile.

    >>> [step for step in range(1, 13) if every(4).due(step)]
    [4, 8, 12]
    >>> [step for step in range(1, 13) if every(4, synchronous_steps=3).due(step)]
    [1, 2, 3, 7, 11]
    >>> [step for step in range(1, 13) if every(4, warmup_steps=3).due(step)]
    [7, 11]

    Raises:
        TypeError: unless the numbers are integers.
        ValueError: unless ``period`` is at least 1 and the others at least 0, one of them 0.
    """
    synchronous = checked_count("synchronous_steps", synchronous_steps, at_least=0)
    warmup = checked_count("warmup_steps", warmup_steps, at_least=0)
    if synchronous and warmup:
        raise ValueError(
            "workers must start with synchronous_steps or with warmup_steps, got "
            f"{synchronous} and {warmup}"
        )
    return _Every(checked_count("period", period, at_least=1), synchronous, warmup)


def post_local(period: int, warmup_steps: int = 0) -> Schedule:
    """After steps w+1, w+1+p, w+1+2p, …: PyTorch's phase.

    No parameters are averaged in the first ``warmup_steps`` steps, in which gradients are
    expected to be. The first step past them is averaged at once, so the first local phase is
    one step long.

    >>> [step for step in range(1, 13) if post_local(4, warmup_steps=2).due(step)]
    [3, 7, 11]

    Raises:
        TypeError: unless both numbers are integers.
        ValueError: unless ``warmup_steps`` is at least 0 and ``period`` at least 1, checked in
            this order.
    """
    warmup_steps = checked_count("warmup_steps", warmup_steps, at_least=0)
    return _PostLocal(checked_count("period", period, at_least=1), warmup_steps)


def aligned(period: int, warmup_steps: int = 0) -> Schedule:
    """After steps 1+k, where k is a multiple of ``period`` and at least ``warmup_steps``.

    The phase of PyTorch's hierarchy: it does not move with warm-up, so the rounds of a long
    period coincide with rounds of every period that divides it.

    >>> [step for step in range(1, 13) if aligned(4, warmup_steps=2).due(step)]
    [5, 9]

    Raises:
        TypeError: unless both numbers are integers.
        ValueError: unless ``warmup_steps`` is at least 0 and ``period`` at least 1, checked in
            this order.
    """
    warmup_steps = checked_count("warmup_steps", warmup_steps, at_least=0)
    return _Aligned(checked_count("period", period, at_least=1), warmup_steps)


def when(function: Callable[[int], bool], warmup_steps: int = 0) -> Schedule:
    """After the steps for which ``function(step)`` is true; a pure function, equal on all ranks.

    ``warmup_steps`` is only what the gradient stage reads: for so many steps it averages over
    all workers. The function decides alone.

    >>> doubling = when(lambda step: step & (step - 1) == 0)
    >>> [step for step in range(1, 20) if doubling.due(step)]
    [1, 2, 4, 8, 16]

    Raises:
        TypeError: unless ``function`` can be called and ``warmup_steps`` is an integer.
        ValueError: unless ``warmup_steps`` is at least 0.
    """
    if not callable(function):
        raise TypeError(f"function must be a function of the step, got {function!r}")
    return _When(function, checked_count("warmup_steps", warmup_steps, at_least=0))
