"""Where checkpoints lie: a folder each, which has its name only once it is complete.

    runs/a/step-000000120/manifest.json
                          rank-00000.safetensors …

A checkpoint is written to a hidden folder and renamed, so a folder with a name is complete, and
what a job that died has left behind has none. One job at a time writes here.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

from localsgd.checkpoint.rank_file import sync_folder

_NAME = re.compile(r"step-(\d{9,})")
_UNFINISHED, _GONE = ".unfinished-", ".gone-"


class CheckpointFolder:
    """A folder of checkpoints; every rank may read, and the first alone makes and removes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    def claim(self) -> None:
        """Makes the folder, takes it for this job, and removes what is unfinished.

        A process that has it already keeps it.

        Raises:
            OSError: if it cannot be made or written to.
            ValueError: if another job has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = self._locked()
        for left in self.path.iterdir():
            if left.name.startswith((_UNFINISHED, _GONE)):
                shutil.rmtree(left)

    def _locked(self) -> int:
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise ValueError(
                    f"folder must be one that no other job writes to, got {self.path}"
                ) from None
            raise
        return lock

    def release(self) -> None:
        """Lets other jobs have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, the newest first."""
        if not self.path.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / f"step-{step:09d}"

    def unfinished(self, step: int) -> Path:
        """Where it is written."""
        return self.path / f"{_UNFINISHED}{self.at(step).name}"

    def begin(self, step: int) -> None:
        """Makes the folder to write to, anew."""
        path = self.unfinished(step)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()

    def commit(self, step: int) -> None:
        """Gives a checkpoint its name, now that all of it is on the disk."""
        path, unfinished = self.at(step), self.unfinished(step)
        sync_folder(unfinished)
        self.remove(step)
        unfinished.rename(path)
        sync_folder(self.path)

    def give_up(self, step: int) -> None:
        """Removes what was written of a checkpoint that failed."""
        shutil.rmtree(self.unfinished(step), ignore_errors=True)

    def remove(self, step: int) -> None:
        """Removes a checkpoint, if it is there; at no moment is half of it there by its name."""
        path = self.at(step)
        if path.exists():
            gone = self.path / f"{_GONE}{path.name}"
            shutil.rmtree(gone, ignore_errors=True)
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def keep(self, count: int) -> None:
        """Removes all but the newest ones."""
        for step in self.steps()[count:]:
            self.remove(step)
