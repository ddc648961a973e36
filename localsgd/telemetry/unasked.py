"""Telemetry of a program that has no line of it: ``LOCALSGD_TELEMETRY`` names a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from localsgd.arrays import Arena
from localsgd.averagers import WATCHERS, Kind, ModelAverager, Round
from localsgd.comm import Communicator
from localsgd.telemetry.telemetry import Telemetry

FOLDER = "LOCALSGD_TELEMETRY"


class Beginning:
    """Stands in an averager's observers until its first round, when all ranks are there."""

    def __init__(self, averager: ModelAverager) -> None:
        self._averager, self._folder = averager, Path(os.environ[FOLDER])

    def before(self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int) -> None:
        averager = self._averager
        made = Telemetry(_new_folder(self._folder, averager.comm), averager, progress=False)
        averager.observers.remove(self)
        made.before(arenas, group, kind, step)

    def after(self, arenas: Sequence[Arena], held: Round) -> None:
        """Its place is taken before a round."""


def _new_folder(folder: Path, comm: Communicator) -> Path:
    """A folder with the next free number, alike on all ranks; rank 0 makes it. Collective."""
    number, trouble = 0, ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = comm.rank != 0
        while not made:
            number += 1
            try:
                (folder / str(number)).mkdir()
                made = True
            except FileExistsError:
                continue
    except OSError as error:
        trouble = f"{FOLDER} must name a folder to write to, got on rank {comm.rank}: {error}"
    said = comm.collect([number, trouble])
    for _, words in said:
        if words:
            raise OSError(words)
    return folder / str(said[0][0])


# As the package is loaded: averagers that are made from then on are observed.
if os.environ.get(FOLDER):
    WATCHERS.append(lambda averager: averager.observers.append(Beginning(averager)))
