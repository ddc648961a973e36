"""Loss against rounds and against bytes, one picture for each family of methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.methods.results import Result


def draw(path: Path, title: str, label: str, results: Sequence[Result]) -> None:
    """Lines are means over seeds; shades lie between the least and the most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
    for number, result in enumerate(results):
        losses, colour = result.curves("loss"), f"C{number % 10}"
        moved = (result.curves("between")[0] + result.curves("within")[0] / 2) / 1e6
        for axes, along in zip(both, (result.curves("rounds")[0], moved), strict=True):
            axes.plot(
                *(along, losses.mean(axis=0)),
                color=colour,
                linestyle="-" if number < 10 else "--",
                marker="o",
                markersize=3,
                label=result.row.name,
            )
            axes.fill_between(
                along, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15
            )
    low = min(float(result.curves("loss").min()) for result in results)
    high = max(float(np.median(result.curves("loss")[:, 1])) for result in results)
    scale = "log" if high > 2 * low else "linear"
    for axes, words in zip(both, ("rounds", "moved between workers, MB"), strict=True):
        axes.set(xlabel=words, xscale="log", yscale=scale, ylim=(low * 0.97, high * 1.1))
        axes.yaxis.set_major_formatter("{x:g}")
        if scale == "log":
            axes.yaxis.set_minor_formatter("{x:.2g}")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel(label)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
