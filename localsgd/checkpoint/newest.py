"""Which checkpoint is the newest that is whole, as all ranks find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localsgd.checkpoint.folder import CheckpointFolder
from localsgd.checkpoint.manifest import Manifest
from localsgd.checkpoint.rank_file import name_of, read
from localsgd.comm.contract import Communicator


@dataclass(frozen=True)
class Found:
    """What was looked for.

    Attributes:
        manifest: of the newest checkpoint that is whole; None if there is none.
        states: by name what this rank's file holds.
        problems: why newer ones were passed over.
    """

    manifest: Manifest | None
    states: Mapping[str, Any]
    problems: Sequence[str]


def newest(folder: CheckpointFolder, comm: Communicator, wanted: int | None) -> Found:
    """Reads checkpoints, the newest first, until every rank has read its file. Collective.

    Args:
        wanted: the step of the only one that will do; None if any will.
    """
    problems: list[str] = []
    steps = comm.collect(folder.steps() if comm.rank == 0 else None)[0]
    for step in steps if wanted is None else [wanted]:
        manifest, states, problem = None, {}, ""
        try:
            manifest = Manifest.read(folder.at(step))
            if manifest.step != step:
                raise ValueError(f"{folder.at(step)} must be of step {step}, got {manifest.step}")
            states = read(folder.at(step) / name_of(comm.rank), manifest.files[comm.rank])
        except (OSError, ValueError) as error:
            problem = f"step {step}, rank {comm.rank}: {error}"
        found = [text for text in comm.collect(problem) if text]
        if not found:
            return Found(manifest, states, problems)
        problems.append(found[0])
    return Found(None, {}, problems)
