"""Ends on its host what is left of a job: processes, shared segments, session folders.

    sweep.py JOB DAEMON AGE    JOB is the ranks' LOCALSGD_JOB, DAEMON@0 a word on the command
                               lines of Open MPI's daemons, AGE the job's in seconds

Run by its path on hosts that the launcher does not run on: needs nothing but the standard library.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
SEGMENTS = ("sm_segment.", "vader_segment.", "osc_sm.", "mpich_shm_", "mpich_vci_")
# Daemons that have lost mpirun end their ranks, and remove what they made, in this time.
_GRACE_S = 1.0
_PAUSE_S = 0.05
# A segment is made first and mapped then.
_MAPPING_S = 0.3


def main() -> int:
    """0 once nothing is left."""
    job, daemon, age_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
    # What asks for this has DAEMON alone on its command line.
    marks = (f"LOCALSGD_JOB={job}".encode(), f"{daemon}@0".encode())
    begin = time.monotonic()
    while left := list(_processes(*marks)):
        if time.monotonic() - begin > _GRACE_S:
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
    since = time.time() - age_s
    unmapped = set(_segments(since)) - _mapped()
    if unmapped:
        time.sleep(_MAPPING_S)
        for path in unmapped - _mapped():
            path.unlink(missing_ok=True)
    for path in _owned(Path(tempfile.gettempdir()), ("prted.",), since):
        owner = path.name.rpartition(".")[2]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path, ignore_errors=True)
    return 0


def _processes(variable: bytes, argument: bytes) -> Iterator[int]:
    """The processes with a variable, or a word on their command line."""
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if pid == os.getpid():
            continue
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if argument in words or variable in (path / "environ").read_bytes().split(b"\0"):
                yield pid


def _segments(since: float) -> list[Path]:
    return _owned(SHARED, SEGMENTS, since)


def _mapped() -> set[Path]:
    """The segments that a process has mapped."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            for line in path.read_text().splitlines():
                if str(SHARED) in line:
                    found.add(Path(line.split(maxsplit=5)[-1]))
    return found


def _owned(folder: Path, prefixes: tuple[str, ...], since: float) -> list[Path]:
    """What in a folder has such a name, is this user's, and is not older than the job."""
    found = []
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(prefixes):
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid == os.geteuid() and status.st_ctime >= since:
                        found.append(Path(entry.path))
    return found


if __name__ == "__main__":
    sys.exit(main())
