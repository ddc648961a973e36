"""The pictures of a report, each of several runs in the same colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from localsgd.telemetry.reading import Run
from localsgd.telemetry.summary import levels_of, losses_of, spread_of, stragglers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#2a6fb0", "#d9731a", "#3b8a4f", "#8a5fb0", "#c0392b", "#1d9a8f", "#66788a", "#b8860b")
_WAIT, _MOVE = "#d9a05b", "#2a6fb0"
_WIDTH = 9.0


def figures(runs: Sequence[Run]) -> Mapping[str, Figure]:
    """The pictures for which there is something, by name.

    Raises:
        ImportError: without matplotlib.
    """
    drawn: Mapping[str, Callable[[Sequence[Run]], Figure | None]] = {
        "loss": _losses,
        "rounds": _rounds,
        "spread": _spreads,
        "stragglers": _stragglers,
    }
    found = {name: draw(runs) for name, draw in drawn.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def _losses(runs: Sequence[Run]) -> Figure | None:
    points = {run.name: losses_of(run) for run in runs}
    if not any(points.values()):
        return None
    figure, axes = _axes(1, 3, 3.2)
    nbytes = [point.nbytes for found in points.values() for point in found]
    size, unit = _unit(max(nbytes))
    # Many points are drawn as their running mean above a shade of what they are.
    for axis, words in zip(axes, ("steps", f"{unit} moved, all ranks", "seconds"), strict=True):
        axis.set_xlabel(words)
    for color, found in zip(_colors(runs), points.values(), strict=True):
        if not found:
            continue
        losses = np.array([point.loss for point in found])
        ways = (
            [point.step for point in found],
            [point.nbytes / size for point in found],
            [point.seconds for point in found],
        )
        for axis, values in zip(axes, ways, strict=True):
            axis.plot(values, losses, color=color, linewidth=0.7, alpha=0.3)
            axis.plot(values, _smooth(losses), color=color, linewidth=1.6)
    axes[0].set_ylabel("loss, mean of ranks")
    for axis in axes[1:]:
        axis.sharey(axes[0])
        axis.tick_params(labelleft=False)
    _legend(figure, runs)
    return figure


def _rounds(runs: Sequence[Run]) -> Figure | None:
    rows = [(run, level) for run in runs for level in levels_of(run)]
    if not rows:
        return None
    figure, (axis,) = _axes(1, 1, 1.1 + 0.42 * len(rows))
    places = np.arange(len(rows))[::-1]
    waited = np.array([level.waited_s for _, level in rows]) * 1e3
    moving = np.array([level.moving_s for _, level in rows]) * 1e3
    stood = np.array([level.stood_s for _, level in rows]) * 1e3
    axis.barh(places, waited, 0.6, color=_WAIT, label="waiting for others")
    axis.barh(places, moving, 0.6, left=waited, color=_MOVE, label="averaging")
    axis.plot(stood, places, "|", color="#222222", markersize=14, label="training stood still")
    axis.set_yticks(places, [f"{run.name}: {level.workers} workers" for run, level in rows])
    axis.set_xlabel("milliseconds of a rank in a round, mean")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _spreads(runs: Sequence[Run]) -> Figure | None:
    spreads = {run.name: spread_of(run) for run in runs}
    if not any(spreads.values()):
        return None
    figure, (left, right) = _axes(1, 2, 3.2)
    for color, found in zip(_colors(runs), spreads.values(), strict=True):
        left.plot([step for step, _, _ in found], [s for _, s, _ in found], ".-", color=color)
        known = [(step, cosine) for step, _, cosine in found if cosine is not None]
        right.plot([step for step, _ in known], [c for _, c in known], ".-", color=color)
    left.set(xlabel="steps", ylabel="distance from the mean")
    left.set_ylim(0, 1.1 * left.get_ylim()[1])
    right.set(xlabel="steps", ylabel="cosine with the mean move")
    _legend(figure, runs)
    return figure


def _stragglers(runs: Sequence[Run]) -> Figure | None:
    late = {run.name: stragglers(run) for run in runs}
    if not any(entry.times for found in late.values() for entry in found.values()):
        return None
    figure, (left, right) = _axes(1, 2, 3.0)
    width = 0.8 / len(runs)
    for index, (color, found) in enumerate(zip(_colors(runs), late.values(), strict=True)):
        places = np.array(list(found), float) + (index + 0.5) * width - 0.4
        rounds = max(1, sum(entry.times for entry in found.values()))
        left.bar(places, [100 * e.times / rounds for e in found.values()], width, color=color)
        right.bar(places, [1e3 * e.seconds for e in found.values()], width, color=color)
    left.set(xlabel="rank", ylabel="% of rounds: came last")
    right.set(xlabel="rank", ylabel="ms after the one before")
    ranks = sorted({rank for found in late.values() for rank in found})
    for axis in (left, right):
        axis.set_xticks(ranks if len(ranks) <= 16 else ranks[:: len(ranks) // 8])
    _legend(figure, runs)
    return figure


def _axes(rows: int, columns: int, height: float) -> tuple[Figure, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e6e9ed", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _colors(runs: Sequence[Run]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(runs))]


def _legend(figure: Figure, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    if len(runs) > 1:
        lines = [Line2D([], [], color=color, linewidth=4) for color in _colors(runs)]
        names = [run.name for run in runs]
        columns = min(len(runs), 4)
        figure.legend(lines, names, loc="outside upper center", ncols=columns, frameon=False)


def _smooth(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mean of a fiftieth of the values around each one."""
    half = len(values) // 100
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    begins = np.maximum(np.arange(len(values)) - half, 0)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))


def _unit(most: float) -> tuple[float, str]:
    """What bytes are divided by, and the unit of the result."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= size:
            return size, unit
    return 1.0, "bytes"
