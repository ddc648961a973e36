"""Draws a plan: the compute utilisation of every method against the bandwidth of the last level."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from localsgd.comm.in_words import rate_in_words
from localsgd.simulate import Plan, sweep

COLORS = {
    "synchronous": "#66788a",
    "hierarchical": "#8a5fb0",
    "local SGD": "#2a6fb0",
    "overlapped": "#1d9a8f",
    "DiLoCo": "#d9731a",
    "streaming": "#3b8a4f",
}
STYLES = ("-", "--", "-.", ":")
POINTS = 160


def draw(made: Plan, target: float, path: Path) -> None:
    """Writes the picture in the format that the path's ending names.

    Raises:
        click.ClickException: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        raise click.ClickException(
            "--picture needs matplotlib: pip install 'localsgd[examples]'"
        ) from None
    cluster = made.job.cluster
    link = cluster.between if cluster.hosts > 1 else cluster.host
    if link is None or cluster.size == 1:
        raise click.ClickException("there must be at least 2 workers to draw, got 1")
    here = link.bandwidth_bit_s
    bandwidths = np.geomspace(here / 1e3, here * 1e3, POINTS)
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots()
    seen: dict[str, int] = {}
    for candidate, found in sweep(made.job, bandwidths, model=made.model).items():
        number = seen[candidate.method] = seen.get(candidate.method, -1) + 1
        taken = candidate == made.recommended.candidate
        axes.plot(
            bandwidths,
            found,
            color=COLORS[candidate.method],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=3.2 if taken else 1.4,
            zorder=3 if taken else 2,
            label=str(candidate),
        )
    axes.axvline(here, color="#222222", linewidth=0.8)
    axes.annotate(f" {link.name}: {rate_in_words(here)}", (here, 1.03), color="#222222", fontsize=9)
    axes.axhline(target, color="#222222", linewidth=0.8, linestyle=(0, (1, 3)))
    axes.annotate(" target", (bandwidths[0], target + 0.01), color="#222222", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(bandwidths[0], bandwidths[-1])
    axes.set_ylim(0, 1.1)
    axes.xaxis.set_major_formatter(EngFormatter(unit="bit/s"))
    axes.set_xlabel(f"bandwidth of {link.name}")
    axes.set_ylabel("compute utilisation")
    axes.set_title(
        f"{made.job.parameters:,} parameters, {cluster.size} workers on {cluster}, "
        f"{made.model} model",
        loc="left",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside right center", fontsize=8, frameon=False)
    for row, text in zip(made.rows, legend.get_texts(), strict=True):
        text.set_fontweight("bold" if row is made.recommended else "normal")
    figure.savefig(path, dpi=110)
