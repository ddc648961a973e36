"""Writing a checkpoint behind the training: every rank its file, then the first the manifest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from localsgd.checkpoint.folder import CheckpointFolder
from localsgd.checkpoint.manifest import NAME, Manifest
from localsgd.checkpoint.rank_file import RankFile, name_of, write
from localsgd.checkpoint.tree import Arrays
from localsgd.comm import RankFailure
from localsgd.comm.contract import Communicator, Json, Request

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read, with the rank and what the system says."""


class Writer:
    """Writes the checkpoints of one job, one at a time.

    It has a group of its own, so that no round of the training waits for the disk.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        comm: Communicator,
        parts: Sequence[str],
        configuration: Json,
        keep: int,
    ) -> None:
        """Takes the folder for this job. Collective.

        Raises:
            CheckpointError: on every rank, if the first cannot.
        """
        self._folder, self._keep, self._of_all = folder, keep, comm
        self._parts, self._configuration = tuple(parts), configuration
        self._writing: Request | None = None
        self._comm = self._group()

    def start(self, step: int, value: Any, arrays: Arrays) -> None:
        """Begins to write a state that was ``flattened``; the arrays must stay as they are."""
        self._writing = self._comm.start(lambda comm: self._write(comm, step, value, arrays))

    def wait(self) -> None:
        """Returns once the last one is complete.

        Raises:
            CheckpointError: on every rank, if it could not be written; those before it stand.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.wait()

    def regroup(self) -> None:
        """Goes on with those that are left of the group. Collective.

        A checkpoint that was being written is given up, unless all had finished it.

        Raises:
            CheckpointError: on every rank, if the first that is left cannot use the folder.
        """
        with suppress(RankFailure, CheckpointError):
            self.wait()
        self._comm.close()
        self._comm = self._group()

    def close(self) -> None:
        """Waits, and lets other jobs have the folder."""
        try:
            self.wait()
        finally:
            self._folder.release()
            self._comm.close()

    def _group(self) -> Communicator:
        """A group for the background, once the first rank has the folder. Collective."""
        comm, folder = self._of_all, self._folder
        what = f"the folder {folder.path} cannot be used"
        # One that is to join others finds it theirs.
        first = comm.rank == 0 and not comm.joining
        on_all(comm, what, lambda: folder.claim() if first else None)
        return comm.split(0)

    def _write(self, comm: Communicator, step: int, value: Any, arrays: Arrays) -> None:
        folder, first = self._folder, comm.rank == 0
        path = folder.unfinished(step) / name_of(comm.rank)
        what = f"the checkpoint of step {step} could not be written, those before it stand"
        try:
            on_all(comm, what, lambda: folder.begin(step) if first else None)
            file = on_all(comm, what, lambda: write(path, value, arrays))
            files = [RankFile(*entry) for entry in comm.collect([file.nbytes, file.digest])]
            on_all(comm, what, lambda: self._commit(comm, step, files) if first else None)
        except CheckpointError:
            if first:
                folder.give_up(step)
            raise

    def _commit(self, comm: Communicator, step: int, files: Sequence[RankFile]) -> None:
        """Gives a checkpoint its manifest and its name, and removes the oldest."""
        unfinished = self._folder.unfinished(step)
        for rank, file in enumerate(files):
            path = unfinished / name_of(rank)
            if not path.exists() or path.stat().st_size != file.nbytes:
                raise OSError(f"{path} of rank {rank} is not seen here: is the folder shared?")
        manifest = Manifest(
            step, str(comm.topology), self._parts, self._configuration, tuple(files)
        )
        with (unfinished / NAME).open("w") as out:
            out.write(manifest.text())
            out.flush()
            os.fsync(out.fileno())
        self._folder.commit(step)
        if "LOCALSGD_RESTART" in os.environ:
            # The launcher, who may be on another host, listens for it.
            print(f"localsgd: saved step {step}", file=sys.stderr, flush=True)
        self._folder.keep(self._keep)


def on_all(comm: Communicator, what: str, work: Callable[[], T]) -> T:
    """What some work gives on this rank, once it is done on all. Collective.

    Raises:
        CheckpointError: on every rank, if it fails on one.
    """
    made: list[T] = []
    problem = ""
    try:
        made.append(work())
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    for rank, text in enumerate(comm.collect(problem)):
        if text:
            raise CheckpointError(f"{what}: rank {rank}: {text}")
    return made[0]
