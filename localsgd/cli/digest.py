"""What a person is told of a job that has failed, of all that its ranks have written down.

Equal errors are told once, the first cause before what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

# Of an error that says something else on each of many ranks so much is shown.
_MOST_WORDINGS = 8


@dataclass(frozen=True)
class Note:
    """What a rank has written down.

    Attributes:
        what: ``"error"``, ``"exit"``, or ``"thread"`` for an error that ended a thread alone.
        rank: None for one that was started later.
        time_s: when, since the epoch.
        code: of an exit.
        words: the error without where it was raised, ending in a line's end.
        follows: whether another rank's failure led to it.
        interrupt: whether it is that of Ctrl-C.
        short: the traceback with the library's frames folded.
        full: the traceback.
        thread: the name of the thread that it ended.
    """

    what: str
    rank: int | None
    time_s: float
    code: int = 1
    words: str = ""
    follows: bool = False
    interrupt: bool = False
    short: str = ""
    full: str = ""
    thread: str = ""

    @property
    def in_a_line(self) -> str:
        """The first line of its words, without the library's name."""
        first = self.words.strip().partition("\n")[0]
        kind, colon, rest = first.partition(":")
        return (kind.rpartition(".")[2] if kind.startswith("localsgd.") else kind) + colon + rest


@dataclass(frozen=True)
class Killed:
    """A process that a signal has ended.

    Attributes:
        rank: None where nobody knows it.
        host: where it was.
        how: the signal's name.
    """

    rank: int | None
    host: str
    how: str


def notes_in(folder: Path) -> list[Note]:
    """What is there, the oldest first."""
    found = [Note(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(found, key=lambda note: note.time_s)


def digest(notes: Sequence[Note], killed: Killed | None, size: int, *, full: bool = False) -> str:
    """What is said, in lines; empty if there is nothing to say.

    Args:
        notes: the oldest first.
        killed: whom mpirun has named.
        size: the number of ranks.
        full: whether frames of the library are shown.
    """
    lines: list[str] = []
    errors = [note for note in notes if note.what == "error"]
    own = [note for note in errors if not note.follows]
    exits = [note for note in notes if note.what == "exit"]
    threads = [note for note in notes if note.what == "thread"]
    for words, those in _grouped(threads, lambda note: f"{note.thread!r}: {note.in_a_line}"):
        who = _named([note.rank for note in those], size)
        lines.append(f"a thread of {who} had raised, {words}")
    lines += _errors(own, size, full)
    if killed is not None and killed.rank not in {note.rank for note in own}:
        hint = ", as by a host that is out of memory" if killed.how == "SIGKILL" else ""
        who = f"a rank on {killed.host}" if killed.rank is None else f"rank {killed.rank}"
        lines.append(f"{who} was ended by {killed.how}{hint}")
    for code, those in _grouped(exits, lambda note: str(note.code)):
        lines.append(f"{_named([note.rank for note in those], size)} ended with exit code {code}")
    following = [note for note in errors if note.follows]
    if lines:
        for words, those in _grouped(following, lambda note: note.in_a_line):
            lines.append(f"{_named([note.rank for note in those], size)} then raised: {words}")
    else:
        lines += _errors(following, size, full)
    return "".join(f"localsgd: {line}\n" for line in lines)


def _errors(notes: Sequence[Note], size: int, full: bool) -> Iterator[str]:
    """Errors that were raised in one place once, and what they say once."""

    def place(note: Note) -> str:
        return (note.full if full else note.short).removesuffix(note.words)

    said: set[str] = set()
    for where, those in _grouped(notes, place):
        who = _named([note.rank for note in those], size)
        wordings = _grouped(those, lambda note: note.words)
        if len(wordings) == 1 and wordings[0][0] in said:
            yield f"{who} raised the same:\n{where}".rstrip("\n")
            continue
        said.update(words for words, _ in wordings)
        yield f"{who} raised:\n{where}{_worded(wordings, size)}".rstrip("\n")


def _worded(wordings: Sequence[tuple[str, list[Note]]], size: int) -> str:
    """What an error says, which may be something else on each rank."""
    if len(wordings) == 1:
        return wordings[0][0]
    by_rank = sorted(wordings, key=lambda wording: min(note.rank or 0 for note in wording[1]))
    lines = [f"{_named([note.rank for note in those], size)}: {words}" for words, those in by_rank]
    if len(lines) > _MOST_WORDINGS:
        lines[_MOST_WORDINGS:] = [f"… and {len(lines) - _MOST_WORDINGS} more\n"]
    return "".join(lines)


def _grouped(notes: Sequence[Note], key: Callable[[Note], str]) -> list[tuple[str, list[Note]]]:
    """Notes that are alike in something, in the order of the first of each."""
    groups: dict[str, list[Note]] = {}
    for note in notes:
        groups.setdefault(key(note), []).append(note)
    return list(groups.items())


def _named(ranks: Sequence[int | None], size: int) -> str:
    """Some ranks in words, as in ``ranks 0-2, 5``."""
    known = sorted({rank for rank in ranks if rank is not None})
    if len(known) == size > 2:
        return f"all {size} ranks"
    spans: list[str] = []
    for _, run in groupby(enumerate(known), lambda pair: pair[1] - pair[0]):
        numbers = [rank for _, rank in run]
        spans += [f"{numbers[0]}-{numbers[-1]}"] if len(numbers) > 2 else map(str, numbers)
    words = [f"rank{'s' if len(known) > 1 else ''} {', '.join(spans)}"] if known else []
    if later := sum(rank is None for rank in ranks):
        words.append("a worker started later" if later == 1 else f"{later} workers started later")
    return " and ".join(words)
