"""Which method does better, as papers have it, and whether it is so here.

Both methods of an ordering see the same samples from the same start for every seed, so what is
judged is the mean of differences within seeds. It must be at most 0; or where methods are to be
alike, at most the standard deviation over seeds of the one that is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.methods.results import Results
from benchmarks.report import Goal


@dataclass(frozen=True)
class Ordering:
    """A claim that the first method's measure is no higher than the second's.

    Attributes:
        alike: whether noise is allowed for.
    """

    claim: str
    paper: str
    task: str
    first: str
    second: str
    measure: str = "loss"
    alike: bool = False

    def checked(self, results: Results) -> Goal:
        first, second = (results[self.task][name] for name in (self.first, self.second))
        less, more = first.final(self.measure), second.final(self.measure)
        differences = less - more
        bound = float(f"{more.std(ddof=1):.3g}") if self.alike else 0.0
        setting = f"{self.task}: {self.measure} of '{self.first}' less '{self.second}'; "
        setting += f"{int((differences <= bound).sum())} of {len(differences)} seeds"
        name = f"ordering: {self.claim} ({self.paper})"
        unit = "nats" if self.task == "digits" else "bits"
        unit = "lengths" if self.measure == "apart" else unit
        return Goal(name, setting, float(differences.mean()), bound, False, unit)


@dataclass(frozen=True)
class Saving:
    """A claim that a method sends at least ``times`` times fewer bytes between hosts."""

    claim: str
    task: str
    first: str
    second: str
    times: float

    def checked(self, results: Results) -> Goal:
        few, many = (
            float(results[self.task][name].final("between")[0])
            for name in (self.first, self.second)
        )
        setting = f"{self.task}: '{self.first}' against '{self.second}'"
        return Goal(f"bytes: {self.claim}", setting, many / few, self.times, True, "times fewer")


FEWER, LOCAL = "fewer rounds cost loss", "1805.09767"
OUTER, SLOW = "DiLoCo is at least as good as averaging", "slow momentum helps"
FEEDBACK, NOISE = "error feedback helps", "int8-wire: loss within noise of exact rounds"
RATE, BEST = f"{OUTER}, at one rate", f"{OUTER}, each at its best rate"
FOUR = "4 bits are within noise of exact rounds"
QUADRATIC = "rounds that grow as the rate falls beat equal ones, about as many"

ALL: tuple[Ordering | Saving, ...] = (
    Ordering(FEWER, LOCAL, "digits", "synchronous", "local 64", alike=True),
    Ordering(FEWER, LOCAL, "digits", "synchronous", "local 4", alike=True),
    Ordering(FEWER, LOCAL, "digits", "local 4", "local 64", alike=True),
    Ordering(FEWER, LOCAL, "digits", "synchronous", "local 64", "learnt", alike=True),
    Ordering(FEWER, LOCAL, "chars", "synchronous", "local 16", alike=True),
    Ordering(FEWER, LOCAL, "chars", "local 16", "local 64", alike=True),
    Ordering(RATE, "2311.08105", "digits", "DiLoCo 16", "AdamW 0.008, local 16"),
    Ordering(RATE, "2311.08105", "chars", "DiLoCo 16", "AdamW 0.004, local 16"),
    Ordering(RATE, "2311.08105", "chars", "DiLoCo 64", "AdamW 0.004, local 64"),
    Ordering(BEST, "2311.08105", "digits", "DiLoCo 16", "AdamW, local 16"),
    Ordering(BEST, "2311.08105", "chars", "DiLoCo 16", "AdamW, local 16"),
    Ordering(BEST, "2311.08105", "chars", "DiLoCo 64", "AdamW, local 64"),
    Ordering(SLOW, "1910.00643", "digits", "SlowMo 16", "local 16"),
    Ordering(SLOW, "1910.00643", "chars", "SlowMo 16", "local 16"),
    Ordering(FEEDBACK, "1901.09847", "digits", "sign", "sign, no feedback"),
    Ordering(FEEDBACK, "1901.09847", "digits", "top 64 of 4096", "top, no feedback"),
    Ordering(
        *("SCAFFOLD beats local SGD on unlike workers", "1910.06378", "digits"),
        *("unlike, SCAFFOLD 16", "unlike, local 16"),
    ),
    Ordering(
        *("one peer is closer to consensus than a ring, for as many messages", "2110.13363"),
        *("digits", "one peer 4", "ring 8", "apart"),
    ),
    Ordering(NOISE, "2501.18512", "digits", "DiLoCo 16, int8", "DiLoCo 16", alike=True),
    Ordering(FOUR, "2501.18512", "digits", "DiLoCo 16, E3M0", "DiLoCo 16", alike=True),
    Ordering(FOUR, "2501.18512", "chars", "DiLoCo 16, E3M0", "DiLoCo 16", alike=True),
    Ordering(QUADRATIC, "2310.14423", "digits", "quadratic", "local 17"),
    Saving("period 16", "digits", "local 16", "synchronous", 16),
    Saving("int8", "digits", "DiLoCo 16, int8", "DiLoCo 16", 3.8),
    Saving("4 bits", "digits", "DiLoCo 16, E3M0", "DiLoCo 16", 6),
    Saving("4 bits", "chars", "DiLoCo 16, E3M0", "DiLoCo 16", 6),
    Saving("sign", "digits", "sign", "local 4", 24),
    Saving("top 64 of 4096", "digits", "top 64 of 4096", "local 4", 24),
    Saving("pairs 4, all 16", "digits", "pairs 4, all 16", "local 4", 4),
)
