"""Draws round.svg: the way of one parameter through a round, and the question asked at each place.

python docs/pictures/round.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, FAINT, MARK, WIRE = "#222222", "#c9d3df", "#d9731a", "#2a6fb0"
# Every worker has a value of its own before the round.
OWN = ("#f9cf9c", "#f0a04b", "#e6842a", "#b9570b")
CELLS, CELL = 8, 0.16
# The marked element is number 5 of 8: the second host's part, and there worker 2's shard.
PLACE = 5
LANES = {0: 3.35, 1: 2.65, 2: 1.35, 3: 0.65}


def buffer(axes: Axes, x: float, y: float, color: str) -> None:
    """A flat buffer with one marked element."""
    for cell in range(CELLS):
        face = color if cell == PLACE else "white"
        box = Rectangle((x + cell * CELL, y - 0.13), CELL, 0.26, fc=face, ec="#8292a3", lw=0.8)
        axes.add_patch(box)


def node(axes: Axes, x: float, y: float, text: str, color: str, width: float = 0.95) -> None:
    style = "round,pad=0.02,rounding_size=0.08"
    corner = (x - width / 2, y - 0.17)
    axes.add_patch(FancyBboxPatch(corner, width, 0.34, boxstyle=style, fc="white", ec=color))
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=color)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, bend: float = 0
) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=color, connectionstyle=style,
            shrinkA=1, shrinkB=1, lw=1.1,
        )
    )  # fmt: skip


def draw(path: Path) -> None:
    figure = Figure(figsize=(10.4, 4.2))
    axes = figure.add_subplot()
    axes.set(xlim=(-0.95, 11.2), ylim=(0.1, 5.05))
    axes.axis("off")
    for name, y in (("host A", 3.0), ("host B", 1.0)):
        box = Rectangle((-0.9, y - 0.75), 12.0, 1.5, fc="#f3f6f9", ec="none", zorder=-2)
        axes.add_patch(box)
        axes.text(-0.85, y + 0.6, name, fontsize=8, color="#66788a")
    for worker, y in LANES.items():
        axes.text(-0.12, y, f"worker {worker}", ha="right", va="center", fontsize=8.5, color=INK)
        buffer(axes, 0, y, OWN[worker])
        arrow(axes, (1.45, y + 0.1), (2.05, y + 0.1), INK, bend=-0.5)
        arrow(axes, (2.05, y - 0.1), (1.45, y - 0.1), INK, bend=-0.5)
        buffer(axes, 9.7, y, WIRE)
        axes.text(2.2, y, "steps", ha="left", va="center", fontsize=8, color="#66788a")
        arrow(axes, (3.2, y), (3.75, LANES[0] if worker < 2 else LANES[2]), MARK)
    axes.plot([3.1, 3.1], [0.35, 3.65], color=FAINT, ls=(0, (4, 3)), lw=1.2)
    for worker, name in ((0, "mean of A"), (2, "mean of B")):
        node(axes, 4.3, LANES[worker], name, MARK)
    arrow(axes, (4.85, LANES[0]), (6.95, LANES[2] + 0.24), WIRE)
    arrow(axes, (4.85, LANES[2]), (6.6, LANES[2]), MARK)
    node(axes, 7.2, LANES[2], "update(mean)", WIRE, width=1.1)
    arrow(axes, (7.4, LANES[2] + 0.24), (8.0, LANES[0] - 0.24), WIRE)
    node(axes, 8.1, LANES[0], "result", WIRE, width=0.7)
    for worker, y in LANES.items():
        source = (8.5, LANES[0]) if worker < 2 else (7.8, LANES[2])
        arrow(axes, source, (9.65, y), WIRE)
    columns = [
        (0.64, "where", "Arena", "one flat buffer that\nneighbours can read"),
        (2.35, "when", "Schedule", "local steps until\ndue(step) is true"),
        (4.3, "who", "Communicator", "neighbours' memory\nis summed in place"),
        (5.9, "how", "Codec", "bytes between\nthe hosts"),
        (7.4, "what", "Averager", "on each worker's\nshard of the mean"),
        (10.3, "where", "Arena", "written back: every\nworker, the same bits"),
    ]
    for x, question, part, words in columns:
        axes.text(x, 4.75, question, ha="center", fontsize=12, weight="bold", color=INK)
        axes.text(x, 4.45, part, ha="center", fontsize=9, color=WIRE, family="monospace")
        axes.text(x, 4.3, words, ha="center", va="top", fontsize=8, color="#4b5a69")
    figure.subplots_adjust(0.005, 0.0, 0.995, 1.0)
    # Without salt and date the same picture is another file at every run.
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
