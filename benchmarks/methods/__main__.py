"""Trains every method on both tasks: ``python -m benchmarks.methods [--seeds N] [--into FOLDER]``.

Writes the page with tables and pictures, and prints a line for every ordering.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.jobs import ROOT, run_here
from benchmarks.methods import orderings, page, settings
from benchmarks.methods.results import Result
from benchmarks.readme import machine

WORKERS = 4
TASKS = {"digits": settings.digits, "chars": settings.chars}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--into", type=Path, default=ROOT / "benchmarks" / "methods")
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {asked.seeds}")
    rows = [(task, row) for task, rows_of in TASKS.items() for row in rows_of()]
    results: dict[str, dict[str, Result]] = {task: {} for task in TASKS}
    words = TextColumn("{task.description}")
    with Progress(words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("training", total=len(rows))
        for task, row in rows:
            progress.update(bar, description=f"{task}, {row.name}")
            results[task][row.name] = Result(row, runs(task, row, asked.seeds))
            progress.advance(bar)
    goals = [claim.checked(results) for claim in orderings.ALL]
    modules = {task: importlib.import_module(f"benchmarks.methods.{task}") for task in TASKS}
    measures = {task: module.MEASURES for task, module in modules.items()}
    page.write(asked.into, results, measures, goals, f"`make bench-methods`, {machine()}.")
    for goal in goals:
        print(goal)


def runs(task: str, row: settings.Row, seeds: int) -> Any:
    """What all seeds of a method measured, from a job of its own."""
    options = {"task": task, "row": row.name, "seeds": seeds}
    environment = {"LOCALSGD_HOSTS": row.hosts, "PYTHONPATH": str(ROOT / "examples")}
    found = run_here("benchmarks.methods.worker", WORKERS, options, environment=environment)
    return found["runs"]


if __name__ == "__main__":
    main()
