"""What ``localsgd bench`` does on every rank, and the table that the first one prints."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from localsgd.comm import world
from localsgd.comm.in_words import rate_in_words, seconds_in_words, size_in_words
from localsgd.simulate import Machine, measure


def show_machine(out: Path | None, largest_bytes: int) -> int:
    """Measures the job's workers, writes ``out`` and prints a table; returns the exit code.

    Collective.
    """
    comm = world()
    console = Console(stderr=True)
    if comm.size < 2:
        console.print("localsgd: there must be at least 2 workers to measure, got 1")
        return 2
    with ExitStack() as stack:
        shows = comm.rank == 0 and console.is_terminal
        status = stack.enter_context(console.status("")) if shows else None
        machine = measure(
            comm,
            largest_bytes=largest_bytes,
            report=lambda what: None if status is None else status.update(f"measuring {what}"),
        )
    if comm.rank == 0:
        if out is not None:
            machine.save(out)
        Console(width=None if Console().is_terminal else 100).print(_table(machine))
    return 0


def _table(machine: Machine) -> Table:
    layout = "+".join(str(workers) for workers in machine.workers)
    table = Table("level", "ends", "bandwidth", "latency", box=box.SIMPLE, title=None)
    for level in machine.levels:
        link = level.link
        table.add_row(
            "memory of a host" if level.name == "host" else "between hosts",
            str(level.ends),
            rate_in_words(link.bandwidth_bit_s),
            seconds_in_words(link.latency_s),
        )
    table.caption = (
        f"An all-reduce of {size_in_words(machine.payload_bytes)} by all workers ({layout}) took "
        f"{seconds_in_words(machine.seconds)}; the levels give "
        f"{seconds_in_words(machine.predicted_s)}. Free memory: "
        f"{size_in_words(machine.free_bytes)} on the host that has the least."
    )
    table.caption_justify = "left"
    return table
