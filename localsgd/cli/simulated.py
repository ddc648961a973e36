"""What ``localsgd simulate`` does: a script on every simulated worker, and a table of what came."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from localsgd.comm import Communicator
from localsgd.comm.in_words import seconds_in_words, size_in_words
from localsgd.simulate import Held, Simulated

_MOST_ROUNDS = 10


def function_of(script: Path, arguments: Sequence[str]) -> Callable[[Communicator], None]:
    """The script as a training function: run from its first line, with globals of its own.

    ``sys.argv`` and ``sys.path`` become those that the script would find.
    """
    code = compile(script.read_bytes(), str(script), "exec")
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))

    def run(comm: Communicator) -> None:
        try:
            exec(code, {"__name__": "__main__", "__file__": str(script)})
        except Exception as error:
            raise RuntimeError(f"{script} failed on rank {comm.rank}") from error

    return run


def show_simulated(found: Simulated[None]) -> None:
    """Prints the time, its parts, and the last rounds."""
    console = Console(width=None if Console().is_terminal else 120)
    console.print(_table(found.rounds[-_MOST_ROUNDS:], len(found.rounds)))
    click.echo(
        f"{len(found.seconds)} workers took {seconds_in_words(max(found.seconds))}; compute was "
        f"{found.utilization:.3f} of it. They moved {size_in_words(found.host_bytes)} within hosts "
        f"and {size_in_words(found.between_bytes)} between them, headers included."
    )
    for rank, second in found.lost.items():
        click.echo(f"Rank {rank} was lost after {seconds_in_words(second)}.")


def _table(rounds: Sequence[Held], count: int) -> Table:
    table = Table(box=box.SIMPLE, title_justify="left")
    table.title = f"The last {len(rounds)} of {count} rounds, all workers' bytes together"
    for name in ("begun at", "waited", "took", "workers", "bytes, host", "bytes, between"):
        table.add_column(name, justify="right")
    for held in rounds:
        table.add_row(
            seconds_in_words(held.begin_s),
            seconds_in_words(held.met_s - held.begin_s),
            seconds_in_words(held.end_s - held.met_s),
            str(held.workers),
            size_in_words(held.host_bytes),
            size_in_words(held.between_bytes),
        )
    return table
