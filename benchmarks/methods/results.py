"""What the runs of a method came to, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.methods.settings import Row

Floats: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True)
class Result:
    """A method's curves, as ``worker.trained`` returns them, one mapping for each seed."""

    row: Row
    runs: Sequence[Mapping[str, Sequence[float]]]

    def curves(self, measure: str) -> Floats:
        """Shape ``(seeds, moments)``."""
        return np.array([run[measure] for run in self.runs], np.float64)

    def final(self, measure: str) -> Floats:
        """One number for each seed: the last, or for ``apart`` the mean."""
        curves = self.curves(measure)
        last: Floats = curves.mean(axis=1) if measure == "apart" else curves[:, -1]
        return last


# By task, then by the name of a method.
Results: TypeAlias = "Mapping[str, Mapping[str, Result]]"


def table(measures: Mapping[str, str], results: Mapping[str, Result]) -> list[str]:
    """Markdown: a row for every method, with means and the range over seeds."""
    heads = ["method", "paper", "inner", *measures.values(), "rounds"]
    heads += ["sent between hosts, MB", "moved in hosts, MB", "workers apart"]
    cells: list[Any] = [heads, ["---", "---", "---", *["---:"] * (len(heads) - 3)]]
    for name, result in results.items():
        row = result.row
        shown = [spread(result.final(measure)) for measure in measures]
        counts = [f"{result.final('rounds')[0]:.0f}"]
        counts += [f"{result.final(way)[0] / 1e6:.2f}" for way in ("between", "within")]
        counts.append(f"{result.final('apart').mean():.4f}")
        cells.append([name, row.paper, str(row.inner), *shown, *counts])
    return [f"| {' | '.join(line)} |" for line in cells]


def spread(values: Floats) -> str:
    digits = 2 if values.mean() > 10 else 4
    return f"{values.mean():.{digits}f} ({values.min():.{digits}f} - {values.max():.{digits}f})"
