"""What a benchmark found: a table, and one line for every goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measure import Spread

OURS = "localsgd"


@dataclass(frozen=True)
class Goal:
    """A number that was measured and the bound that it was to keep.

    Attributes:
        name: as in the list of goals.
        setting: what it was measured on, as in ``4 ranks``.
        measured: None if it was not measured.
        wanted: the bound.
        at_least: whether the bound is the least that is wanted, or the most.
        unit: what both numbers count.
        reason: why it was not measured.
    """

    name: str
    setting: str
    measured: float | None
    wanted: float
    at_least: bool
    unit: str
    reason: str = ""

    @property
    def kept(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    def __str__(self) -> str:
        bound = f"at {'least' if self.at_least else 'most'} {self.wanted:g} {self.unit}"
        if self.measured is None:
            return f"goal {self.name}: not run: {self.reason}, wanted {bound}"
        found = f"measured {self.measured:.3g} {self.unit} ({self.setting})"
        return f"goal {self.name}: {found}, wanted {bound}: {'ok' if self.kept else 'short'}"


@dataclass
class Report:
    """What one script found.

    Attributes:
        name: of the script.
        question: what it answers.
        columns: the heads of the table.
        rows: the table's cells.
        notes: what a reader of the table must know.
    """

    name: str
    question: str
    columns: list[str] = field(default_factory=lambda: ["setting", "what", "median", "quartiles"])
    rows: list[list[str]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_times(
        self, setting: str, times: Mapping[str, Sequence[float]], baseline: str = OURS
    ) -> dict[str, Spread]:
        """Adds a row for every way, with its ratio to the baseline; returns the spreads."""
        if "ratio" not in self.columns:
            self.columns.append("ratio")
        spreads = {name: Spread.of(seconds) for name, seconds in times.items()}
        for name, spread in spreads.items():
            ratio = spread.median / spreads[baseline].median
            quartiles = f"{shown(spread.low)} - {shown(spread.high)}"
            self.rows.append([setting, name, shown(spread.median), quartiles, f"{ratio:.2f}"])
        return spreads

    def markdown(self) -> str:
        """Table, goals and notes."""
        lines = [self.question, ""]
        if self.rows:
            table = [self.columns, ["---"] * len(self.columns), *self.rows]
            lines += [f"| {' | '.join(cells)} |" for cells in table] + [""]
        if self.goals:
            lines += ["```", *map(str, self.goals), "```", ""]
        return "\n".join([*lines, *(f"{note}\n" for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        goals = [Goal(**goal) for goal in value["goals"]]
        return cls(**{**value, "goals": goals})


def shown(seconds: float) -> str:
    """Seconds in a unit that suits them, to three digits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
