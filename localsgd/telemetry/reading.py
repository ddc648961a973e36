"""What ranks have written, read again: one run, all times on rank 0's clock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RoundLine:
    """One rank's part in a round; times in seconds since 1970 by rank 0's clock.

    Attributes:
        kind: "round" or "flush".
        begin_s, end_s: how long this rank's training stood still for it.
        comm_s: how long its collectives took, in the background or not.
        waited_s: how much of that it waited for others.
        sent, received: bytes between hosts.
        host_bytes: read and written in the memory of the host.
        distance2, cosine: where they were measured.
    """

    rank: int
    kind: str
    step: int
    workers: int
    begin_s: float
    end_s: float
    comm_s: float
    waited_s: float
    sent: int
    received: int
    host_bytes: int
    distance2: float | None = None
    cosine: float | None = None

    @property
    def hidden_s(self) -> float:
        """How much of its collectives' time training went on."""
        return max(0.0, self.comm_s - (self.end_s - self.begin_s))


@dataclass(frozen=True)
class StepLine:
    """A step that was logged; bytes are those of all calls since telemetry began."""

    rank: int
    step: int
    at_s: float
    nbytes: int
    values: Mapping[str, Any]


@dataclass
class Run:
    """What the ranks of one group have written.

    Attributes:
        name: of the folder.
        hosts: for every rank that has written the number of its host, and the host's name.
        size: of the group.
        begin_s: when the first rank began, in seconds since 1970.
    """

    name: str
    size: int
    averager: str
    hosts: dict[int, tuple[int, str]] = field(default_factory=dict)
    began_s: dict[int, float] = field(default_factory=dict)
    rounds: list[RoundLine] = field(default_factory=list)
    steps: list[StepLine] = field(default_factory=list)

    @property
    def begin_s(self) -> float:
        return min(self.began_s.values())


def read_runs(folder: Path) -> list[Run]:
    """The runs of a folder and of those in it, in the order of their names.

    Raises:
        ValueError: if there is none, or a file has something else.
    """
    folders = sorted({path.parent for path in folder.rglob("rank-*.jsonl")})
    if not folders:
        raise ValueError(f"{folder} must have files rank-*.jsonl, got none")
    return [_read(place, folder) for place in folders]


def _read(place: Path, folder: Path) -> Run:
    parts = [place.name] if place == folder else [folder.name, *place.relative_to(folder).parts]
    run = Run("/".join(parts), 0, "")
    for path in sorted(place.glob("rank-*.jsonl"), key=lambda path: (len(path.name), path.name)):
        shift = 0.0
        for number, line in enumerate(whole_lines(path), 1):
            try:
                entry = json.loads(line)
                if entry["kind"] == "run":
                    shift = entry["offset_s"] - entry["origin_s"] + entry["origin_unix_s"]
                    rank = entry["rank"]
                    run.size, run.averager = entry["size"], entry["averager"]
                    run.hosts[rank] = (entry["host"], entry["name"])
                    run.began_s.setdefault(rank, entry["begin_s"] + shift)
                elif entry["kind"] in ("round", "flush"):
                    run.rounds.append(_round(rank, entry, shift))
                elif entry["kind"] == "step":
                    run.steps.append(_step(rank, entry, shift))
            except (KeyError, TypeError, ValueError, UnboundLocalError) as error:
                raise ValueError(
                    f"{path}, line {number}, must be a line of telemetry after one of kind "
                    f"'run', got {line[:80]!r}"
                ) from error
    return run


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file that end; a job that was killed may leave one that does not."""
    yield from path.read_text("utf-8").rpartition("\n")[0].splitlines()


def _round(rank: int, entry: Mapping[str, Any], shift: float) -> RoundLine:
    return RoundLine(
        rank,
        entry["kind"],
        entry["step"],
        entry["workers"],
        entry["begin_s"] + shift,
        entry["end_s"] + shift,
        entry["comm_s"],
        entry["waited_s"],
        entry["sent"],
        entry["received"],
        entry["host_read"] + entry["host_written"],
        entry.get("distance2"),
        entry.get("cosine"),
    )


def _step(rank: int, entry: Mapping[str, Any], shift: float) -> StepLine:
    known = ("kind", "step", "at_s", "sent", "host_bytes")
    values = {key: value for key, value in entry.items() if key not in known}
    nbytes = entry["sent"] + entry["host_bytes"]
    return StepLine(rank, entry["step"], entry["at_s"] + shift, nbytes, values)


def together(run: Run) -> list[Sequence[RoundLine]]:
    """For every round of all workers what each rank has written of it, in the order of rounds."""
    of_rank: dict[int, list[RoundLine]] = {rank: [] for rank in run.hosts}
    for line in run.rounds:
        if line.workers == run.size:
            of_rank[line.rank].append(line)
    return list(zip(*of_rank.values(), strict=False))
