"""Reads what the ranks of a job write down, and tells it once.

Every rank writes errors that nobody has caught into a folder of this host (``as_rank.py``). Ranks
on other hosts print theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from localsgd.cli.as_rank import FOLDER
from localsgd.cli.deaths import Deaths
from localsgd.cli.digest import Killed, Note, digest, notes_in
from localsgd.cli.overheard import Overheard

# Where a job goes on without those that raise, how long others may take to raise the same.
_TOGETHER_S = 0.3


@dataclass(frozen=True)
class Telling:
    """How errors are told.

    Attributes:
        full: whether frames of the library are shown.
        at_once: whether they are told while the job goes on, not at its end.
    """

    full: bool = False
    at_once: bool = False


class Account:
    """The errors of one start of a job.

    Args:
        folder: where the ranks write, which has nothing of another start.
        size: the number of ranks.
    """

    def __init__(self, folder: Path, telling: Telling, size: int) -> None:
        self._folder, self._telling, self._size = folder, telling, size
        self._told: set[Note] = set()
        self._ranks: dict[int, int | None] = {}
        self._deaths = Deaths()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)

    @property
    def variables(self) -> dict[str, str]:
        """What the ranks have in their environment."""
        return {FOLDER: str(self._folder)}

    def look(self) -> None:
        """Notes who has ended, and tells what is new if it is to be told at once."""
        if len(self._ranks) < self._size:
            self._ranks = self._begun()
            self._deaths.expect(self._ranks)
        self._deaths.look()
        if self._telling.at_once and (notes := self._new(time.time() - _TOGETHER_S)):
            self._say(digest(notes, None, self._size, full=self._telling.full))
            self._told.update(notes)

    def end(self, heard: Overheard, *, failed: bool, wanted: bool) -> None:
        """Tells what has not been told, and where all of it is; the job has ended.

        Args:
            heard: has what was said, and is told what was not.
            failed: whether it has failed.
            wanted: whether a person or the clock has ended it, so that ranks were killed.
        """
        self._deaths.look()
        self._deaths.close()
        notes = [note for note in self._new() if not (wanted and note.interrupt)]
        for note in notes:
            if note.what == "error":
                heard.note(f"rank {note.rank} raised:\n{note.full}")
        said = ""
        if failed or self._telling.at_once:
            killed = None if wanted or not failed else self._named(heard.killed())
            shown = [note for note in notes if failed or note.what != "thread"]
            said = digest(shown, killed, self._size, full=self._telling.full)
        heard.let_banners_go(shown=not said)
        self._say(said)
        if (said and any(note.full for note in notes)) or self._told:
            with suppress(OSError):
                place = _write(heard.tail, notes_in(self._folder))
                self._say(f"localsgd: all that was said, and every traceback: {place}\n")

    def _new(self, until_s: float = float("inf")) -> list[Note]:
        notes = notes_in(self._folder)
        return [note for note in notes if note not in self._told and note.time_s <= until_s]

    def _named(self, killed: Killed | None) -> Killed | None:
        """Who was killed, also where mpirun does not know: the first that ended without a word."""
        if killed is None or killed.rank is not None:
            return killed
        ended = {int(path.name.partition("-")[0]) for path in self._folder.glob("*.json")}
        ended |= {int(path.stem) for path in self._folder.glob("*.end")}
        silent = [pid for pid in self._deaths.order if pid not in ended]
        return replace(killed, rank=self._ranks.get(silent[0])) if silent else killed

    def _begun(self) -> dict[int, int | None]:
        """The rank of every process of this host that has begun."""
        found = {}
        for path in self._folder.glob("*.rank"):
            said = json.loads(path.read_text())
            if said["host"] == socket.gethostname():
                found[int(path.stem)] = said["rank"]
        return found

    def _say(self, words: str) -> None:
        with suppress(OSError):
            print(words, end="", file=sys.stderr, flush=True)


def _write(said: bytes, notes: list[Note]) -> Path:
    """Writes all of it into a new file."""
    descriptor, name = tempfile.mkstemp(prefix="localsgd-failed-", suffix=".txt")
    with os.fdopen(descriptor, "wb") as file:
        file.write(said)
        for note in notes:
            if note.full:
                words = f"\nrank {note.rank} raised:\n{note.full}"
                file.write(words.encode(errors="backslashreplace"))
    return Path(name)
