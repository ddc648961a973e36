"""Checkpoints of torch's objects: what the core saves, with tensors for arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from torch import Generator
from torch.nn import Module

from localsgd import checkpoint as core
from localsgd.checkpoint import Part, has_mean
from localsgd.comm import Communicator
from localsgd.comm.contract import Json
from localsgd.resizing import SavedStates
from localsgd.schedules import Schedule
from localsgd.torch.arrays import with_arrays, with_tensors
from localsgd.torch.comm import ProcessGroup, communicator, outside_modes


class Checkpoints(core.Checkpoints):
    """As ``localsgd.Checkpoints``, also of modules, optimizers, schedulers and generators of torch.

        parts = {"model": model, "training": training, "dropout": torch.default_generator}
        saves = Checkpoints("run", parts, when=every(100))
        step = saves.load() or 0

    No pickles are written or read. Tensors of any device are saved by their values, and loaded to
    where the object has them.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        parts: Mapping[str, object],
        process_group: ProcessGroup = None,
        *,
        when: Schedule,
        keep: int = 2,
        configuration: Json = None,
        preemption: Schedule | None = None,
    ) -> None:
        """Collective.

        Args:
            parts: as in ``localsgd.Checkpoints``, and torch's: what has ``state_dict`` and
                ``load_state_dict``, and generators.
            process_group: the workers; None for all.
            folder, when, keep, configuration, preemption: as in ``localsgd.Checkpoints``.

        Raises:
            TypeError, ValueError, CheckpointError, MismatchError: as ``localsgd.Checkpoints``.
        """
        comm: Communicator = communicator(process_group)
        super().__init__(
            folder,
            parts,
            comm,
            when=when,
            keep=keep,
            configuration=configuration,
            preemption=preemption,
        )

    def _part(self, name: str, value: object) -> Part:
        if isinstance(value, Generator):
            return _in_arrays(Part(value.get_state, value.set_state, _other_numbers))
        part = super()._part(name, value)
        if isinstance(value, Module):
            part = Part(part.state, part.load, _mean)
        return _in_arrays(part) if hasattr(value, "state_dict") else part


def _in_arrays(part: Part) -> Part:
    """The part with arrays for its tensors."""

    @outside_modes()
    def state() -> Any:
        return with_arrays(part.state())

    @outside_modes()
    def load(saved: Any) -> object:
        return part.load(with_tensors(saved))

    return Part(state, load, part.resized)


def _other_numbers(saved: SavedStates) -> Any:
    """A generator's state; of another generator on every rank that is new."""
    turns = saved.comm.rank // saved.before.size
    if not turns:
        return saved.own
    digest = sha256(saved.own.tobytes() + turns.to_bytes(8, "little")).digest()
    made = Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return made.get_state().numpy()


def _mean(saved: SavedStates) -> Any:
    """A module's state of the states of another number of ranks: means of floats. Collective."""
    return {
        key: saved.at(key).mean() if has_mean(value) else value for key, value in saved.own.items()
    }
