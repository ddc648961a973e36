"""What trainings of a GPT came to: loss against steps, bytes and seconds, as table and picture."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.table import Table

from localsgd import Communicator

UNIT = "held-out loss, bits per character"


@dataclass
class Curve:
    """One training, looked at now and then.

    Attributes:
        digest: of the model that it ended with, equal on all ranks.
        steps: when it was looked at.
        bits: the held-out loss then, of the mean of all workers' parameters.
        nbytes: what all workers together had moved by then, between ranks of a host or hosts.
        seconds: of training until then.
    """

    digest: str = ""
    steps: list[int] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, step: int, bits: float, nbytes: int, seconds: float) -> str:
        """Notes a moment; returns it in words."""
        self.steps.append(step)
        self.bits.append(bits)
        self.nbytes.append(nbytes)
        self.seconds.append(seconds)
        return f"step {step:5}: {bits:.3f} bits, {nbytes / 1e6:,.1f} MB, {seconds:.1f} s"


class Watch:
    """Bytes that all workers have moved, and seconds, while it runs. All calls are collective."""

    def __init__(self, comm: Communicator) -> None:
        self._comm, self._nbytes, self._seconds = comm, 0, 0.0
        self.go_on()

    def go_on(self) -> None:
        self._before, self._begin = self._moved(), time.perf_counter()

    def stop(self) -> tuple[int, float]:
        self._nbytes += sum(self._comm.collect(self._moved() - self._before))
        self._seconds += time.perf_counter() - self._begin
        return self._nbytes, self._seconds

    def _moved(self) -> int:
        traffic = self._comm.traffic
        return traffic.host_read + traffic.host_written + traffic.sent + traffic.received


def table(title: str, curves: Mapping[str, Curve]) -> Table:
    """A row for every method, compared with the first."""
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False)
    first = next(iter(curves))
    for heading in ("method", UNIT, f"against {first}", "moved", "took"):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for method, curve in curves.items():
        worse = 100 * (curve.bits[-1] / curves[first].bits[-1] - 1)
        shown.add_row(
            method,
            f"{curve.bits[-1]:.3f}",
            "" if method == first else f"{worse:+.2f} %",
            f"{curve.nbytes[-1] / 1e6:,.1f} MB",
            f"{curve.seconds[-1]:.1f} s",
        )
    return shown


def draw(path: Path, title: str, curves: Mapping[str, Curve]) -> None:
    """The loss against steps, against what was moved, and against seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", sharey=True)
    for method, curve in curves.items():
        megabytes = [nbytes / 1e6 for nbytes in curve.nbytes]
        for axes, costs in zip(panels, (curve.steps, megabytes, curve.seconds), strict=True):
            axes.plot(costs, curve.bits, label=method, marker=".", markersize=4)
    for axes, label in zip(panels, ("steps", "moved, MB", "seconds"), strict=True):
        axes.set(xlabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel=UNIT)
    panels[1].set_xscale("log")
    panels[0].legend(loc="best", frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
