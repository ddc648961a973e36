"""Checkpoints: everything that training goes on from, written while it goes on.

What is saved is copied between two steps and written in the background, by every rank its own
file. When the files of all are on the disk, the first rank writes the manifest and gives the
checkpoint its name; until then it has none, so whenever a job ends, what it finds when it starts
again is the newest checkpoint that all ranks had finished.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np

from localsgd.checkpoint.folder import CheckpointFolder
from localsgd.checkpoint.newest import Found, newest
from localsgd.checkpoint.preemption import Notice, Preempted, require_signals
from localsgd.checkpoint.savable import Part, part_of
from localsgd.checkpoint.tree import Arrays, flattened
from localsgd.checkpoint.writer import CheckpointError, Writer
from localsgd.checks import agreed, caller_level, checked_count, workers_of
from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Communicator, Json
from localsgd.schedules import Schedule


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
        when: after which steps ``after`` saves.
        preemption: after which steps it looks whether the job was told to stop.
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
        preemption: Schedule | None = None,
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
            preemption: after which steps all ranks look whether one of them got ``SIGTERM`` or
                ``SIGUSR1``, as batch systems send before they take a machine away. Then ``after``
                saves and ends the program with exit code 75. None leaves signals alone.

        Raises:
            TypeError, ValueError: for an invalid argument.
            CheckpointError: on every rank, if the first cannot use the folder, or another job does.
            MismatchError: on every rank, if arguments differ.
        """
        self._comm = workers_of(comm)

        def prepare() -> dict[str, Part]:
            if self._comm is NON_MEMBER:
                raise ValueError("comm must be a group that this worker is in, got NON_MEMBER")
            for name, schedule in (("when", when), ("preemption", preemption)):
                if not isinstance(schedule, Schedule) and (name == "when" or schedule is not None):
                    raise TypeError(
                        f"{name} must have due(step), as every(100) has, got {schedule!r}"
                    )
            if preemption is not None:
                require_signals()
            checked_count("keep", keep, at_least=1)
            return {name: self._part(name, value) for name, value in parts.items()}

        def words(made: Mapping[str, Part]) -> list[str]:
            how = f"{when!r}, keep={keep}, preemption={preemption!r}, {configuration}"
            return [*(f"part {name!r}" for name in made), how]

        self._parts = agreed(self._comm, "checkpoints", prepare, words)
        self.when, self.preemption, self._configuration = when, preemption, configuration
        self._folder, self._room = CheckpointFolder(folder), dict[str, Any]()
        self._writer = Writer(self._folder, self._comm, list(self._parts), configuration, keep)
        self._notice = None if preemption is None else Notice()

    def __repr__(self) -> str:
        parts = ", ".join(self._parts)
        return f"{type(self).__name__}({str(self._folder.path)!r}: {parts}; when={self.when!r})"

    def load(self, step: int | None = None) -> int | None:
        """Takes over the newest checkpoint that is whole, or that of a step. Collective.

        Where a file of the newest is missing or has changed, the one before it is taken, and the
        first rank warns. So it does where another number of ranks has saved, or in another layout
        of hosts: ``docs/training.md`` says what then holds.

        Returns:
            The step after which it was saved; None if there is no checkpoint, and in a worker that
            is to join others, which takes over what they have.

        Raises:
            CheckpointError: on every rank, if there are some and none is whole, or that of the
                step is not.
            TypeError, ValueError, MismatchError: if one does not fit what is here; then nothing
                has changed.
        """
        if self._comm.joining:
            return None
        self.wait()
        wanted = None if step is None else checked_count("step", step, at_least=0)
        agreed(self._comm, "steps", lambda: wanted, lambda made: [f"step {made}"])
        found = newest(self._folder, self._comm, wanted)
        if found.manifest is None:
            if found.problems:
                raise CheckpointError(f"no checkpoint is whole: {'; '.join(found.problems)}")
            return None
        self._take_over(found)
        if self._comm.rank == 0:
            self._warn_of(found)
        return found.manifest.step

    def after(self, step: int) -> bool:
        """Saves if it is due after this step. Collective when due.

        Returns:
            Whether a checkpoint was begun.

        Raises:
            Preempted: a SystemExit with code 75, on every rank, once the checkpoint is complete, if
                one of them was told to stop.
            TypeError, CheckpointError, MismatchError: as ``save``.
        """
        told = False
        if self._notice is not None and self.preemption is not None and self.preemption.due(step):
            told = self._notice.told_any(self._comm)
        due = told or self.when.due(step)
        if due:
            self.save(step)
        if told:
            self.close()
            raise Preempted(step)
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
            return value, self._copied(arrays)

        value, arrays = agreed(self._comm, "checkpoints", prepare, lambda _: [f"step {step}"])
        self._writer.start(step, value, arrays)

    def wait(self) -> None:
        """Returns once the checkpoint that is being written is complete. Collective.

        Raises:
            CheckpointError: on every rank, if it could not be written; those before it stand.
        """
        self._writer.wait()

    def regroup(self) -> None:
        """Goes on with those that are left of the group; ``Survival`` calls it. Collective."""
        self._writer.regroup()

    def close(self) -> None:
        """Waits, and lets other jobs have the folder. Collective."""
        if self._notice is not None:
            self._notice.forget()
        self._writer.close()

    def _part(self, name: str, value: object) -> Part:
        if not isinstance(name, str) or not name:
            raise TypeError(f"parts must have texts for names, got {name!r}")
        return part_of(name, value)

    def _copied(self, arrays: Arrays) -> Arrays:
        """Copies, where the last ones were if they are alike: new memory takes twice as long."""
        room, self._room = self._room, {}
        for name, array in arrays.items():
            own = room.get(name)
            if own is None or (own.shape, own.dtype) != (array.shape, array.dtype):
                own = np.empty_like(array)
            own[...] = array
            self._room[name] = own
        return dict(self._room)

    def _take_over(self, found: Found) -> None:
        """Lets every part take over its state, or none on any rank."""
        before: list[tuple[Part, Any]] = []
        try:
            if set(found.states) != set(self._parts):
                raise ValueError(f"parts must be {list(found.states)}, got {list(self._parts)}")
            states = self._resized(found)
            for name, part in self._parts.items():
                before.append((part, deepcopy(part.state())))
                load = partial(part.load, states[name])
                agreed(self._comm, f"the saved {name}", load, lambda _: [])
        except BaseException:
            for part, previous in before:
                part.load(previous)
            raise

    def _resized(self, found: Found) -> Mapping[str, Any]:
        """What this rank takes over, of whatever number of ranks has saved it. Collective."""
        saved = found.saved
        if saved is None:
            return found.states
        states = dict(found.states)
        for name, part in self._parts.items():
            if part.resized is not None:
                make = partial(part.resized, saved.at(name))
                states[name] = agreed(self._comm, f"the saved {name}", make, lambda _: [])
        return states

    def _warn_of(self, found: Found) -> None:
        """Says what a user would want to know of what was loaded."""
        words = [f"passed over a checkpoint: {problem}" for problem in found.problems]
        if found.manifest is not None and found.manifest.configuration != self._configuration:
            words.append(
                f"the checkpoint was saved with configuration {found.manifest.configuration}, this "
                f"training goes on with {self._configuration}"
            )
        if found.saved is not None:
            words.append(
                f"the checkpoint was saved by {found.saved.before.size} ranks on hosts "
                f"{found.saved.before}, {self._comm.size} go on with it on hosts "
                f"{self._comm.topology}"
            )
        for text in words:
            warnings.warn(text, stacklevel=caller_level())
