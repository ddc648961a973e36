"""Checkpoints: everything that training goes on from, written while it goes on.

What is saved is copied between two steps and written in the background, by every rank its own
file. When the files of all are on the disk, the first rank writes the manifest and gives the
checkpoint its name; until then it has none, so whenever a job ends, what it finds when it starts
again is the newest checkpoint that all ranks had finished.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

from localsgd.checkpoint.folder import CheckpointFolder
from localsgd.checkpoint.manifest import NAME, Manifest
from localsgd.checkpoint.newest import Found, newest
from localsgd.checkpoint.rank_file import RankFile, name_of, write
from localsgd.checkpoint.savable import Part, part_of
from localsgd.checkpoint.tree import Arrays, flattened
from localsgd.checks import agreed, caller_level, checked_count, workers_of
from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Communicator, Json, Request
from localsgd.schedules import Schedule

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read, with the rank and what the system says."""


class Checkpoints:
    """Saves a training in the background, and loads it to the bit.

        saves = Checkpoints("run", {"params": arena, "training": training}, when=every(100))
        step = saves.load() or 0
        while step < steps:
            …
            training.step()
            step += 1
            saves.after(step)
        saves.close()

    Attributes:
        folder: where they lie.
        keep: how many are kept.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        parts: Mapping[str, object],
        comm: Communicator | None = None,
        *,
        when: Schedule,
        keep: int = 2,
        configuration: Json = None,
    ) -> None:
        """Collective.

        Args:
            folder: seen by all ranks, and written to by this job alone.
            parts: what is saved: objects with ``state_dict`` and ``load_state_dict``, arenas,
                dicts of arrays, random generators of numpy or Python, and dicts of numbers and
                texts. Loaded in this order.
            comm: the ranks; None means ``localsgd.world()``.
            when: after which steps ``after`` saves.
            keep: how many complete checkpoints are kept, at least 1.
            configuration: kept with every checkpoint; where it is another one when that is loaded,
                there is a warning.

        Raises:
            TypeError, ValueError: for an invalid argument, or a folder that another job has.
            CheckpointError: on every rank, if the first cannot write to the folder.
            MismatchError: on every rank, if arguments differ.
        """
        self._comm = workers_of(comm)
        if self._comm is NON_MEMBER:
            raise ValueError("comm must be a group that this worker is in, got NON_MEMBER")
        self.folder, self._configuration = CheckpointFolder(folder), configuration

        def prepare() -> dict[str, Part]:
            if not isinstance(when, Schedule):
                raise TypeError(f"when must have due(step), as every(100) has, got {when!r}")
            self.keep = checked_count("keep", keep, at_least=1)
            return {name: self._part(name, value) for name, value in parts.items()}

        def words(made: Mapping[str, Part]) -> list[str]:
            return [f"part {name!r}" for name in made] + [f"{when!r}, keep={keep}, {configuration}"]

        self._when = when
        self._parts = agreed(self._comm, "checkpoints", prepare, words)
        # A background of its own, so that no round waits for the disk.
        self._writers = self._comm.split(0)
        self._writing: Request | None = None
        self._on_first("be used", self.folder.claim)

    def load(self, step: int | None = None) -> int | None:
        """Takes over the newest checkpoint that is whole, or that of a step. Collective.

        Where a file of the newest is missing or has changed, the one before it is taken, and the
        first rank warns.

        Returns:
            The step after which it was saved; None if there is no checkpoint.

        Raises:
            CheckpointError: on every rank, if there are some and none is whole, or that of the
                step is not.
            TypeError, ValueError, MismatchError: if one does not fit what is here; then nothing
                has changed.
        """
        self.wait()
        wanted = None if step is None else checked_count("step", step, at_least=0)
        agreed(self._comm, "steps", lambda: wanted, lambda made: [f"step {made}"])
        found = newest(self.folder, self._comm, wanted)
        for problem in found.problems if self._comm.rank == 0 else ():
            warnings.warn(f"passed over a checkpoint: {problem}", stacklevel=caller_level())
        if found.manifest is None:
            if found.problems:
                raise CheckpointError(f"no checkpoint is whole: {'; '.join(found.problems)}")
            return None
        self._take_over(found)
        return found.manifest.step

    def after(self, step: int) -> bool:
        """Saves if it is due after this step. Collective when due.

        Returns:
            Whether a checkpoint was begun.

        Raises:
            As ``save``.
        """
        due = self._when.due(step)
        if due:
            self.save(step)
        return due

    def save(self, step: int) -> None:
        """Copies everything as it is after this step, and begins to write it. Collective.

        Waits for the checkpoint before this one, if that is still being written.

        Raises:
            TypeError: for a state that cannot be saved.
            CheckpointError: on every rank, if the one before could not be written.
            MismatchError: on every rank, if steps or the success of others differ.
        """
        self.wait()

        def prepare() -> tuple[Any, Arrays]:
            checked_count("step", step, at_least=0)
            value, arrays = flattened({name: part.state() for name, part in self._parts.items()})
            return value, {name: array.copy() for name, array in arrays.items()}

        made = agreed(self._comm, "checkpoints", prepare, lambda _: [f"step {step}"])
        self._writing = self._writers.start(lambda comm: self._write(comm, step, *made))

    def wait(self) -> None:
        """Returns once the checkpoint that is being written is complete. Collective.

        Raises:
            CheckpointError: on every rank, if it could not be written; those before it stand.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.wait()

    def close(self) -> None:
        """Waits, and lets other jobs have the folder. Collective."""
        try:
            self.wait()
        finally:
            self.folder.release()
            self._writers.close()

    def _part(self, name: str, value: object) -> Part:
        if not isinstance(name, str) or not name:
            raise TypeError(f"parts must have texts for names, got {name!r}")
        return part_of(name, value)

    def _on_first(self, what: str, work: Callable[[], object]) -> None:
        """Runs something on the first rank, and raises on all what it raises. Collective."""
        error: Exception | None = None
        try:
            if self._comm.rank == 0:
                work()
        except Exception as raised:
            error = raised
        problem = self._comm.collect("" if error is None else f"{type(error).__name__}: {error}")[0]
        if problem:
            self._writers.close()
            raise CheckpointError(f"the folder {self.folder.path} cannot be {what}: {problem}")

    def _write(self, comm: Communicator, step: int, value: Any, arrays: Arrays) -> None:
        """Writes this rank's file and, once all are written, commits; collective."""
        folder, first = self.folder, comm.rank == 0
        path = folder.unfinished(step) / name_of(comm.rank)
        try:
            self._on_all(comm, step, lambda: folder.begin(step) if first else None)
            file = self._on_all(comm, step, lambda: write(path, value, arrays))
            files = [RankFile(*entry) for entry in comm.collect([file.nbytes, file.digest])]
            self._on_all(comm, step, lambda: self._commit(comm, step, files) if first else None)
        except CheckpointError:
            if first:
                folder.give_up(step)
            raise

    def _on_all(self, comm: Communicator, step: int, work: Callable[[], T]) -> T:
        """What some work gives, once it is done on all ranks; an error on all if it fails on one.

        Collective.
        """
        made: list[T] = []
        problem = ""
        try:
            made.append(work())
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        problems = comm.collect(problem)
        for rank, text in enumerate(problems):
            if text:
                raise CheckpointError(
                    f"the checkpoint of step {step} could not be written on rank {rank}: {text}; "
                    "those before it stand"
                )
        return made[0]

    def _commit(self, comm: Communicator, step: int, files: Sequence[RankFile]) -> None:
        """Gives a checkpoint its manifest and its name, and removes the oldest."""
        hosts, parts = str(comm.topology), tuple(self._parts)
        manifest = Manifest(step, hosts, parts, self._configuration, tuple(files))
        unfinished = self.folder.unfinished(step)
        for rank, file in enumerate(files):
            path = unfinished / name_of(rank)
            if not path.exists() or path.stat().st_size != file.nbytes:
                raise OSError(f"{path} of rank {rank} is not seen here: is the folder shared?")
        with (unfinished / NAME).open("w") as out:
            out.write(manifest.text())
            out.flush()
            os.fsync(out.fileno())
        self.folder.commit(step)
        self.folder.keep(self.keep)

    def _take_over(self, found: Found) -> None:
        """Lets every part take over its state, or none on any rank."""
        assert found.manifest is not None
        if found.manifest.configuration != self._configuration and self._comm.rank == 0:
            warnings.warn(
                f"the checkpoint was saved with configuration {found.manifest.configuration}, this "
                f"training goes on with {self._configuration}",
                stacklevel=caller_level(),
            )
        before: list[tuple[Part, Any]] = []
        try:
            if set(found.states) != set(self._parts):
                raise ValueError(f"parts must be {list(found.states)}, got {list(self._parts)}")
            for name, part in self._parts.items():
                before.append((part, deepcopy(part.state())))
                load = partial(part.load, found.states[name])
                agreed(self._comm, f"the saved {name}", load, lambda _: [])
        except BaseException:
            for part, previous in before:
                part.load(previous)
            raise
