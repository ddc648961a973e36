"""Rounds that grow rarer as the learning rate falls: the quadratic synchronization rule.

Source: Gu et al., A quadratic synchronization rule (arXiv 2310.14423).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from localsgd.checks import checked_count, checked_number, name_of
from localsgd.schedules.fixed import Schedule

# Where the learning rate is 0 and there is no end of training, no round follows within so many.
_NEVER = 1 << 62


@dataclass(frozen=True)
class _Quadratic:
    base: int
    alpha: float
    rate: Callable[[int], float]
    power: float
    total_steps: int | None
    synchronous_steps: int
    warmup_steps: int
    # The steps after which rounds are, as far as they were asked for.
    _rounds: list[int] = field(default_factory=list, compare=False, repr=False)

    def due(self, step: int) -> bool:
        if 1 <= step <= self.synchronous_steps:
            return True
        if not self._rounds:
            self._rounds.append(self.synchronous_steps or self.warmup_steps)
        while self._rounds[-1] < step:
            self._rounds.append(self._rounds[-1] + self.period_from(self._rounds[-1]))
        # They rise; mostly it is the last or the one before.
        place = bisect_left(self._rounds, step)
        return place > 0 and self._rounds[place] == step

    def period_from(self, start: int) -> int:
        """How many steps the round has that begins after step ``start``."""
        rate = checked_number("the learning rate", self.rate(start))
        steps = _NEVER if rate == 0 else min((self.alpha / rate) ** self.power, float(_NEVER))
        period = max(self.base, math.floor(steps))
        if self.total_steps is not None and start < self.total_steps:
            period = min(period, self.total_steps - start)
        return period

    def __repr__(self) -> str:
        words = [str(self.base), str(self.alpha), name_of(self.rate), f"power={self.power}"]
        for name in ("total_steps", "synchronous_steps", "warmup_steps"):
            if getattr(self, name):
                words.append(f"{name}={getattr(self, name)}")
        return f"quadratic({', '.join(words)})"


def quadratic(
    base: int,
    alpha: float,
    rate: Callable[[int], float],
    *,
    power: float = 2.0,
    total_steps: int | None = None,
    synchronous_steps: int = 0,
    warmup_steps: int = 0,
) -> Schedule:
    """A round has ``max(base, floor((alpha / eta)^power))`` steps, eta its first step's rate.

    A pure function of the step, so that all ranks decide alike and nothing need be saved.

    >>> falling = quadratic(4, 0.0175, lambda step: 0.008 if step < 8 else 0.004)
    >>> [step for step in range(1, 50) if falling.due(step)]
    [4, 8, 27, 46]

    Args:
        base: the fewest steps of a round, at least 1.
        alpha: above 0; 0.0175 for a peak rate of 0.008 in the paper.
        rate: the learning rate as a function of the steps taken before, as in
            ``lambda step: lr.cosine(1000).at(step, 0.008)``; equal on all ranks.
        power: of the ratio, above 0; 2 is the rule, 1 and 3 are its rivals.
        total_steps: the last round ends there.
        synchronous_steps, warmup_steps: as in ``every``.

    Raises:
        TypeError: for what is no function or number.
        ValueError: for a number out of its range.
    """
    if not callable(rate):
        raise TypeError(f"rate must be a function of the step, got {rate!r}")
    for name, number in (("alpha", alpha), ("power", power)):
        if checked_number(name, number) == 0:
            raise ValueError(f"{name} must be above 0, got {number}")
    synchronous = checked_count("synchronous_steps", synchronous_steps, at_least=0)
    warmup = checked_count("warmup_steps", warmup_steps, at_least=0)
    if synchronous and warmup:
        raise ValueError(
            "workers must start with synchronous_steps or with warmup_steps, got "
            f"{synchronous} and {warmup}"
        )
    return _Quadratic(
        checked_count("base", base, at_least=1),
        float(alpha),
        rate,
        float(power),
        None if total_steps is None else checked_count("total_steps", total_steps, at_least=1),
        synchronous,
        warmup,
    )
