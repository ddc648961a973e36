"""Removes what an MPI library leaves behind when it is killed: only what its own job made.

Where the library can be told a folder for shared segments, the job has one of its own. Elsewhere
the proof for a shared segment is that a process of the job had it mapped, and for a session
folder that it bears mpirun's process number; neither may have been there before the job. A rank
may die at any moment, and others with it, so that the proof is taken as soon as a segment appears.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
_SEGMENTS = ("sm_segment.", "vader_segment.", "osc_sm.", "mpich_shm_", "mpich_vci_")
_SHORTEST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 1.0
_IN_CREATE = 0x100
# Where the launchers look for a place for temporary files, first come first served.
_TEMPORARY = ("PRTE_MCA_prte_tmpdir_base", "OMPI_MCA_orte_tmpdir_base", "TMPDIR", "TEMP", "TMP")


def own_folder() -> Path | None:
    """A new folder for the segments of one job; None where none can be made."""
    try:
        return Path(tempfile.mkdtemp(prefix="localsgd-", dir=SHARED))
    except OSError:
        return None


def remove_folder(folder: Path | None) -> None:
    """Removes the folder with all that is in it, if it is still there."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


class Leftovers:
    """The files of one job, gathered while it runs; made before the job starts.

    Args:
        environment: the job's variables, which may say where temporary files go.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        folders = [environment[name] for name in _TEMPORARY if environment.get(name)]
        self._temporary = Path(folders[0] if folders else "/tmp")
        self._earlier = {*_owned(SHARED, _SEGMENTS), *self._sessions()}
        self._segments: set[Path] = set()
        self._watch = _creations(SHARED)
        self._pause_s = _LONGEST_PAUSE_S

    def wait(
        self, seconds: float, pids: Callable[[], Iterable[int]], until: Sequence[int] = ()
    ) -> None:
        """Lets time pass; when a segment appears, looks which of the job's processes has it.

        Looks again 1, 2, 4 … ms later, since a segment is made first and mapped then.

        Args:
            seconds: how long, at most.
            pids: gives the job's processes of that moment.
            until: descriptors, of which one that can be read ends the wait.
        """
        if self._watch is None:
            select.select(until, [], [], seconds)
            return
        ready = select.select([self._watch, *until], [], [], min(seconds, self._pause_s))[0]
        if self._watch in ready:
            os.read(self._watch, 4096)
            self._pause_s = _SHORTEST_PAUSE_S
            self.look(pids())
        elif not ready and self._pause_s < _LONGEST_PAUSE_S:
            self._pause_s *= 2
            self.look(pids())

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
        if self._watch is not None:
            os.close(self._watch)
            self._watch = None
        for path in (self._segments - self._earlier) & set(_owned(SHARED, _SEGMENTS)):
            path.unlink(missing_ok=True)
        for path in set(self._sessions()) - self._earlier:
            if path.name.rpartition(".")[2] == str(mpirun):
                shutil.rmtree(path, ignore_errors=True)

    def _sessions(self) -> list[Path]:
        """Session folders: ``ompi.PID`` of Open MPI 5, ``ompi.HOST.UID/pid.PID`` of 4."""
        tops = _owned(self._temporary, ("ompi.", "prte."))
        return [*tops, *(path for top in tops for path in _owned(top, ("pid.", "dvm.")))]


def _creations(folder: Path) -> int | None:
    """A descriptor that is readable when something has been made in a folder, where there is one.

    Linux's inotify, which Python's own library lacks.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    watch: int = libc.inotify_init1(os.O_CLOEXEC)
    if watch >= 0 and libc.inotify_add_watch(watch, os.fsencode(folder), _IN_CREATE) >= 0:
        return watch
    if watch >= 0:
        os.close(watch)
    return None


def _owned(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    """What in a folder has such a name and is this user's."""
    found: list[Path] = []
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.startswith(prefixes)]
    except OSError:
        return found
    for entry in entries:
        # Another job's may be gone by now.
        with suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                found.append(Path(entry.path))
    return found
