"""When fragments of a model leave and arrive: in turn, spread over the period.

Source: Douillard et al., Streaming DiLoCo (arXiv 2501.18512), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localsgd.checks import checked_count


@dataclass(frozen=True)
class Streaming:
    """Every ``period`` steps each of ``fragments`` fragments leaves, and arrives ``delay`` later.

    Fragment p leaves after the steps s with ``(s - p · period // fragments) % period == 0``,
    counted from the end of the synchronous steps or the warm-up.

    Attributes:
        period: steps from one round of a fragment to its next.
        fragments: how many there are.
        delay: steps for which a round is on its way.
        synchronous_steps: for so many steps at first all parameters are averaged after each.
        warmup_steps: for so many steps at first nothing is averaged; then all parameters are, once.
    """

    period: int
    fragments: int
    delay: int = 0
    synchronous_steps: int = 0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: for a number out of its range.
        """
        checked_count("period", self.period, at_least=1)
        checked_count("fragments", self.fragments, at_least=1)
        checked_count("delay", self.delay, at_least=0)
        for name in ("synchronous_steps", "warmup_steps"):
            checked_count(name, getattr(self, name), at_least=0)
        if self.fragments > self.period:
            raise ValueError(
                f"fragments must be at most the period, {self.period}, got {self.fragments}"
            )
        if self.delay > self.period:
            raise ValueError(f"delay must be at most the period, {self.period}, got {self.delay}")
        if self.synchronous_steps and self.warmup_steps:
            raise ValueError(
                "one of synchronous_steps and warmup_steps must be 0, got "
                f"{self.synchronous_steps} and {self.warmup_steps}"
            )

    @property
    def together(self) -> int:
        """The steps before streaming begins."""
        return self.synchronous_steps or self.warmup_steps

    def of_all(self, step: int) -> bool:
        """Whether all parameters are averaged after a step, before streaming begins."""
        return 1 <= step <= self.synchronous_steps or 1 <= step == self.warmup_steps

    def leaving(self, step: int) -> Sequence[int]:
        """The fragments whose rounds begin after this step."""
        since = step - self.together
        if since < 1:
            return ()
        offsets = (index * self.period // self.fragments for index in range(self.fragments))
        return [
            index
            for index, offset in enumerate(offsets)
            if since >= offset and (since - offset) % self.period == 0
        ]

    def arriving(self, step: int) -> Sequence[int]:
        """The fragments that come back after this step."""
        return self.leaving(step - self.delay)

    def due(self, step: int) -> bool:
        return self.of_all(step) or bool(self.leaving(step) or self.arriving(step))
