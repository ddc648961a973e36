"""Removes what an MPI library leaves behind when it is killed: only what its own job made.

The proof for a shared segment is that a process of the job had it mapped, and for a session
folder that it bears mpirun's process number; neither may have been there before the job.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

SHARED = Path("/dev/shm")
_SEGMENTS = ("sm_segment.", "vader_segment.", "osc_sm.", "mpich_shm_", "mpich_vci_")
# Where the launchers look for a place for temporary files, first come first served.
_TEMPORARY = ("PRTE_MCA_prte_tmpdir_base", "OMPI_MCA_orte_tmpdir_base", "TMPDIR", "TEMP", "TMP")


class Leftovers:
    """The files of one job, gathered while it runs; made before the job starts."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        folders = [environment[name] for name in _TEMPORARY if environment.get(name)]
        self._temporary = Path(folders[0] if folders else "/tmp")
        self._earlier = {*_owned(SHARED, _SEGMENTS), *self._sessions()}
        self._segments: set[Path] = set()

    def look(self, pids: Iterable[int]) -> None:
        """Notes the segments that these processes have mapped now."""
        for pid in pids:
            try:
                maps = Path(f"/proc/{pid}/maps").read_text()
            except OSError:
                continue
            paths = (Path(line.split(maxsplit=5)[-1]) for line in maps.splitlines())
            self._segments.update(
                path for path in paths if path.parent == SHARED and path.name.startswith(_SEGMENTS)
            )

    def remove(self, mpirun: int | None = None) -> None:
        """Removes them, now that the job has ended.

        Args:
            mpirun: the process number that the launcher had, if there was one.
        """
        for path in (self._segments - self._earlier) & set(_owned(SHARED, _SEGMENTS)):
            path.unlink(missing_ok=True)
        for path in set(self._sessions()) - self._earlier:
            if path.name.rpartition(".")[2] == str(mpirun):
                shutil.rmtree(path, ignore_errors=True)

    def _sessions(self) -> list[Path]:
        """Session folders: ``ompi.PID`` of Open MPI 5, ``ompi.HOST.UID/pid.PID`` of 4."""
        tops = _owned(self._temporary, ("ompi.", "prte."))
        return [*tops, *(path for top in tops for path in _owned(top, ("pid.", "dvm.")))]


def _owned(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    """What in a folder has such a name and is this user's."""
    found = []
    try:
        for entry in os.scandir(folder):
            owner = entry.stat(follow_symlinks=False).st_uid
            if entry.name.startswith(prefixes) and owner == os.geteuid():
                found.append(Path(entry.path))
    except OSError:
        return found
    return found
