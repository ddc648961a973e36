"""Telemetry of a job that is launched, and what is made of it: a timeline, a report."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from localsgd.telemetry import FOLDER, read_runs, timeline, write_page


@contextmanager
def watched(folder: Path | None, trace: Path | None) -> Iterator[None]:
    """Has jobs that begin in it write telemetry into a folder, and a timeline at the end."""
    if folder is None and trace is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="localsgd-telemetry-") as kept:
        place = Path(kept) if folder is None else folder.resolve()
        before = os.environ.get(FOLDER)
        os.environ[FOLDER] = str(place)
        try:
            yield
        finally:
            if before is None:
                del os.environ[FOLDER]
            else:
                os.environ[FOLDER] = before
        if trace is not None:
            _write_timeline(place, trace)


def _write_timeline(folder: Path, trace: Path) -> None:
    try:
        trace.write_text(json.dumps(timeline(read_runs(folder))))
    except (OSError, ValueError) as error:
        click.echo(f"localsgd: there is no timeline: {error}", err=True)


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Writes the page, and its pictures beside it; says where."""
    runs = [run for folder in folders for run in read_runs(folder)]
    for path in write_page(runs, out):
        click.echo(path)
