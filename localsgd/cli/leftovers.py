"""Removes what MPI libraries leave behind in shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHARED = Path("/dev/shm")
_OF_MPI = ("sm_segment.", "vader_segment.", "mpich_shm_")


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Removes what has appeared meanwhile and no process has mapped: another job's has been."""
    before = _segments()
    try:
        yield
    finally:
        _remove_unused(_segments() - before)


def _segments() -> set[Path]:
    """The files of MPI libraries in shared memory."""
    if not _SHARED.is_dir():
        return set()
    return {path for path in _SHARED.iterdir() if path.name.startswith(_OF_MPI)}


def _remove_unused(paths: set[Path]) -> None:
    """Removes what has appeared during the job and no process has mapped: another job's is."""
    if not paths:
        return
    mapped = "".join(_maps())
    for path in paths:
        if str(path) not in mapped and path.stat().st_uid == os.geteuid():
            path.unlink(missing_ok=True)


def _maps() -> Iterator[str]:
    """What the other processes have mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if maps.parent.name == str(os.getpid()):
            continue
        try:
            yield maps.read_text()
        except OSError:
            continue
