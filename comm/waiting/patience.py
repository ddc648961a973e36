"""How long a rank waits for others before it says so, and before it gives up.

Unless a deadline is given both follow from what the rank has seen: whoever computes for minutes
between two collectives must grant the others minutes, too. What has happened once may be a first
checkpoint, or the end of a pause; so it is the second longest that counts, and what lasted long
counts for long: it is worth half after sixteen times its own length.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

OnLate: TypeAlias = Literal["fail", "wait"]

# Before a first checkpoint, compilation or validation takes a rank by surprise.
DEADLINE_S, _SAY_S = 600.0, 30.0
# However long rounds are, nobody is silent for longer.
_SILENT_S = 300.0
_TIMES_USUAL = 5.0
_HALVED_AFTER = 16.0


@dataclass(frozen=True)
class Patience:
    """What a program wants of waiting.

    Attributes:
        deadline_s: how long a wait may last; None lets it follow from what is usual.
        on_late: what comes after that: ``"fail"`` raises RankFailure, ``"wait"`` goes on.
    """

    deadline_s: float | None = None
    on_late: OnLate = "fail"

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0 seconds, got {self.deadline_s}")
        if self.on_late not in get_args(OnLate):
            raise ValueError(f"on_late must be one of {get_args(OnLate)}, got {self.on_late!r}")

    @classmethod
    def of(cls, deadline_s: float | None, on_late: OnLate | None) -> Patience:
        """What the arguments say, or else ``LOCALSGD_DEADLINE_S`` and ``LOCALSGD_ON_LATE``."""
        text = os.environ.get("LOCALSGD_DEADLINE_S", "")
        if deadline_s is None and text:
            try:
                deadline_s = float(text)
            except ValueError:
                raise ValueError(f"LOCALSGD_DEADLINE_S must be seconds, got {text!r}") from None
        if on_late is None:
            on_late = _named(os.environ.get("LOCALSGD_ON_LATE") or "fail")
        return cls(deadline_s, on_late)

    def say_after_s(self, usual_s: float) -> float:
        """How long a wait may last without a word, where ``usual_s`` are usual."""
        seconds = min(max(_SAY_S, usual_s), _SILENT_S)
        return seconds if self.deadline_s is None else min(seconds, self.deadline_s / 2)

    def fail_after_s(self, usual_s: float) -> float:
        """How long a wait may last, where ``usual_s`` are usual."""
        if self.on_late == "wait":
            return math.inf
        if self.deadline_s is not None:
            return self.deadline_s
        return max(DEADLINE_S, _TIMES_USUAL * usual_s)


class Usual:
    """What a rank may expect of the others, by what it has seen lately."""

    def __init__(self) -> None:
        self._longest: list[tuple[float, float]] = []

    def note(self, seconds: float, now: float) -> None:
        """Something has lasted so long, and ended now."""
        # What is shorter changes nothing.
        if seconds > _SAY_S:
            self._longest.append((seconds, now))
            self._longest.sort(key=lambda entry: _worth(entry, now), reverse=True)
            del self._longest[2:]

    def seconds(self, now: float) -> float:
        """The second longest of what was noted, by what it is worth now; 0 before there is one."""
        return _worth(self._longest[1], now) if self._longest[1:] else 0.0


def _worth(entry: tuple[float, float], now: float) -> float:
    seconds, noted_at = entry
    return float(seconds * 0.5 ** ((now - noted_at) / (_HALVED_AFTER * seconds)))


def _named(text: str) -> OnLate:
    for known in get_args(OnLate):
        if text == known:
            return known  # type: ignore[no-any-return]  # get_args has no types
    raise ValueError(f"LOCALSGD_ON_LATE must be one of {get_args(OnLate)}, got {text!r}")
