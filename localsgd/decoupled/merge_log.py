"""What happened in a decoupled run: lines of JSON, from which it can be run again to the bit.

Every rank writes two files: ``owner-RANK.jsonl`` has the merges of the fragments that it owns,
``worker-RANK.jsonl`` which merged fragments it took over, and after which of its steps.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localsgd.decoupled.merge import Copy


class MergeLog:
    """Writes one rank's files; without a folder nothing."""

    def __init__(self, folder: Path | None, rank: int, size: int, words: str) -> None:
        """
        Args:
            folder: made if it is not there; files of an earlier run are written over.
            words: what the run is, to be compared when it is run again.

        Raises:
            OSError: if the files cannot be written.
        """
        self._paths: dict[str, Path] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for kind in ("owner", "worker"):
                self._paths[kind] = folder / f"{kind}-{rank}.jsonl"
                self._paths[kind].write_text("")
                self._write(kind, {"kind": "run", "rank": rank, "size": size, "averager": words})

    def merged(
        self,
        fragment: int,
        number: int,
        copies: Sequence[Copy],
        left_out: Mapping[int, str],
        grace_s: float,
        quorum_s: float,
        *,
        in_flush: bool,
    ) -> None:
        """A fragment's merge ``number``: of these copies, without those that were left out."""
        total = sum(copy.weight for copy in copies if copy.rank not in left_out)
        who = [
            {
                "rank": copy.rank,
                "step": copy.step,
                "tokens": copy.tokens,
                "steps": copy.steps,
                "weight": copy.weight / total if total and copy.rank not in left_out else 0.0,
                **({"left_out": left_out[copy.rank]} if copy.rank in left_out else {}),
            }
            for copy in copies
        ]
        times = {"quorum_s": quorum_s, "grace_s": grace_s}
        # A flush is done again as a whole.
        kind = "merge in flush" if in_flush else "merge"
        self._write(
            "owner", {"kind": kind, "fragment": fragment, "round": number, "who": who, **times}
        )

    def taken(self, fragment: int, number: int, step: int, how: str) -> None:
        """This worker has taken merge ``number`` of a fragment over after a step."""
        line = {"kind": "take", "fragment": fragment, "round": number, "step": step, "how": how}
        self._write("worker", line)

    def flushed(self, step: int) -> None:
        """What all hold is one model."""
        for kind in self._paths:
            self._write(kind, {"kind": "flush", "step": step})

    def _write(self, kind: str, line: Mapping[str, Any]) -> None:
        # Opened for each line, of which there are few: nothing is lost, and nothing to be closed.
        if kind in self._paths:
            with self._paths[kind].open("a") as file:
                file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Planned:
    """A merge as it was recorded.

    Attributes:
        number: of the merge of this fragment, from 1.
        steps: of the copies that came, by rank: after which of its steps each was taken.
    """

    number: int
    steps: Mapping[int, int]


class Recorded:
    """What one rank needs of the files of a run, to do the same again."""

    def __init__(self, folder: Path, rank: int, size: int, words: str) -> None:
        """
        Raises:
            FileNotFoundError: if a rank's file is not there.
            ValueError: if the run was another, or a line cannot be read.
        """
        self._merges: dict[int, deque[Planned | None]] = defaultdict(deque)
        self._takes: dict[tuple[int, int], int] = {}
        self._takers: dict[tuple[int, int], list[int]] = defaultdict(list)
        flushes = 0
        for line in _lines(folder / f"owner-{rank}.jsonl", size, words):
            if line["kind"] == "merge":
                steps = {entry["rank"]: entry["step"] for entry in line["who"]}
                queue = self._merges[line["fragment"]]
                queue.extend([None] * (flushes - queue.count(None)))
                queue.append(Planned(line["round"], steps))
            elif line["kind"] == "flush":
                flushes += 1
        for worker in range(size):
            for line in _lines(folder / f"worker-{worker}.jsonl", size, words):
                if line["kind"] == "take":
                    self._takers[line["fragment"], line["round"]].append(worker)
                    if worker == rank:
                        self._takes[line["fragment"], line["step"]] = line["round"]

    def take(self, fragment: int, step: int) -> int | None:
        """The merge that this worker takes over after a step; None if none."""
        return self._takes.get((fragment, step))

    def takers(self, fragment: int, number: int) -> Sequence[int]:
        """The ranks that have taken a merge over."""
        return self._takers[fragment, number]

    def next_merge(self, fragment: int) -> Planned | None:
        """The next merge of a fragment that this rank owns; None if a flush comes before."""
        queue = self._merges[fragment]
        return queue[0] if queue else None

    def merged(self, fragment: int) -> None:
        """It was done again."""
        self._merges[fragment].popleft()

    def flushed(self) -> None:
        """The flush was done again."""
        for queue in self._merges.values():
            if queue and queue[0] is None:
                queue.popleft()


def _lines(path: Path, size: int, words: str) -> list[dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"a run to replay must have {path.name}, got none in {path.parent}")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}:{number} must be JSON, got {error}") from None
    head = lines[0] if lines else {}
    given = (head.get("size"), head.get("averager"))
    if given != (size, words):
        raise ValueError(
            f"a run must be replayed with what it was, size {given[0]} and {given[1]}, "
            f"got size {size} and {words}"
        )
    return lines[1:]
