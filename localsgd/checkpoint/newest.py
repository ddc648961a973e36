"""Which checkpoint is the newest that is whole, as all ranks find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from localsgd.checkpoint.folder import CheckpointFolder
from localsgd.checkpoint.manifest import Manifest
from localsgd.checkpoint.rank_file import name_of, read
from localsgd.comm import Topology
from localsgd.comm.contract import Communicator
from localsgd.resizing import SavedStates


@dataclass(frozen=True)
class Found:
    """What was looked for.

    Attributes:
        manifest: of the newest checkpoint that is whole; None if there is none.
        states: by name what this rank's file holds; where other ranks than these saved, that of
            the rank whose it takes over.
        saved: what those ranks had; None if they are as many, on hosts of the same layout.
        problems: why newer ones were passed over.
    """

    manifest: Manifest | None
    states: Mapping[str, Any]
    problems: Sequence[str]
    saved: SavedStates | None = None


def newest(folder: CheckpointFolder, comm: Communicator, wanted: int | None) -> Found:
    """Reads checkpoints, the newest first, until every rank has read its files. Collective.

    Args:
        wanted: the step of the only one that will do; None if any will.
    """
    problems: list[str] = []
    steps = comm.collect(folder.steps() if comm.rank == 0 else None)[0]
    for step in steps if wanted is None else [wanted]:
        found, problem = Found(None, {}, problems), ""
        try:
            found = _read(folder.at(step), step, comm, problems)
        except (OSError, ValueError) as error:
            problem = f"step {step}, rank {comm.rank}: {error}"
        told = [text for text in comm.collect(problem) if text]
        if not told:
            return found
        problems.append(told[0])
    return Found(None, {}, problems)


def _read(path: Path, step: int, comm: Communicator, problems: Sequence[str]) -> Found:
    """What this rank needs of a checkpoint.

    Raises:
        OSError, ValueError: if it is not what was written.
    """
    manifest = Manifest.read(path)
    if manifest.step != step:
        raise ValueError(f"{path} must be of step {step}, got {manifest.step}")

    # One for the rank whose state this one takes over, and one for that which is looked at.
    @lru_cache(maxsize=2)
    def of(rank: int) -> Any:
        return read(path / name_of(rank), manifest.files[rank])

    if manifest.hosts == str(comm.topology):
        return Found(manifest, of(comm.rank), problems)
    saved = SavedStates(comm, Topology.parse(manifest.hosts, len(manifest.files)), of)
    for _ in saved.mine():
        pass
    return Found(manifest, saved.own, problems, saved)
