"""What a run came to, in numbers: totals, costs by level, who was waited for."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localsgd.telemetry.reading import RoundLine, Run, together


@dataclass(frozen=True)
class Level:
    """Rounds of so many workers; means of one rank's part in one round.

    Attributes:
        rounds: how many a rank has held.
        stood_s: how long training stood still.
        waited_s: how long a rank waited for others.
        moving_s: how long its collectives took otherwise.
        hidden_s: how much of both training went on.
        sent, host_bytes: bytes between hosts, and in the memory of the host.
    """

    workers: int
    rounds: int
    stood_s: float
    waited_s: float
    moving_s: float
    hidden_s: float
    sent: float
    host_bytes: float


@dataclass(frozen=True)
class Late:
    """How often a rank was the last to come to a round of all, and what that cost.

    Attributes:
        times: how often it was the last.
        seconds: by how much it came after the one before it, all times together.
    """

    times: int
    seconds: float


def steps_of(run: Run) -> int:
    """The last step that is heard of."""
    steps = [*(line.step for line in run.rounds), *(line.step for line in run.steps)]
    return max(steps, default=0)


def seconds_of(run: Run) -> float:
    """From the first rank's beginning to the last line."""
    ends = [*(line.end_s for line in run.rounds), *(line.at_s for line in run.steps)]
    return max(ends, default=run.begin_s) - run.begin_s


def levels_of(run: Run) -> list[Level]:
    """The levels of a run, the smallest group first."""
    lines: dict[int, list[RoundLine]] = defaultdict(list)
    for line in run.rounds:
        lines[line.workers].append(line)
    return [_level(workers, lines[workers]) for workers in sorted(lines)]


def _level(workers: int, lines: Sequence[RoundLine]) -> Level:
    rounds = max(Counter(line.rank for line in lines).values())

    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values)

    return Level(
        workers,
        rounds,
        mean([line.end_s - line.begin_s for line in lines]),
        mean([line.waited_s for line in lines]),
        mean([max(0.0, line.comm_s - line.waited_s) for line in lines]),
        mean([line.hidden_s for line in lines]),
        mean([line.sent for line in lines]),
        mean([line.host_bytes for line in lines]),
    )


def hidden_share(run: Run) -> float:
    """The part of all collectives' time in which training went on, in [0, 1]."""
    taken = sum(line.comm_s for line in run.rounds)
    return sum(line.hidden_s for line in run.rounds) / taken if taken else 0.0


def effective_period(run: Run) -> float | None:
    """Local steps per round of any level; None without a round that was due."""
    due = Counter(line.rank for line in run.rounds if line.kind == "round")
    return steps_of(run) / max(due.values()) if due else None


def stragglers(run: Run) -> Mapping[int, Late]:
    """For every rank how often it was the last to begin a round of all, and how late."""
    times: Counter[int] = Counter()
    seconds: dict[int, float] = defaultdict(float)
    for lines in together(run):
        if len(lines) > 1:
            before, last = sorted(lines, key=lambda line: line.begin_s)[-2:]
            times[last.rank] += 1
            seconds[last.rank] += last.begin_s - before.begin_s
    return {rank: Late(times[rank], seconds[rank]) for rank in run.hosts}


def spread_of(run: Run) -> list[tuple[int, float, float | None]]:
    """Of measured rounds the step, the workers' root mean square distance, the mean cosine.

    spread = √(Σ ‖x_i − mean‖² / workers)
    """
    found = []
    for lines in together(run):
        squares = [line.distance2 for line in lines if line.distance2 is not None]
        cosines = [line.cosine for line in lines if line.cosine is not None]
        if squares and len(squares) == len(lines):
            cosine = statistics.fmean(cosines) if len(cosines) == len(lines) else None
            found.append((lines[0].step, statistics.fmean(squares) ** 0.5, cosine))
    return found


@dataclass(frozen=True)
class Point:
    """The loss at a step, the mean over ranks; bytes of all together, seconds from the start."""

    step: int
    loss: float
    nbytes: int
    seconds: float


def losses_of(run: Run) -> list[Point]:
    """The logged losses of a run; of a step that was taken again, the last."""
    found: dict[int, dict[int, tuple[float, int, float]]] = defaultdict(dict)
    for line in run.steps:
        loss = line.values.get("loss")
        if isinstance(loss, (int, float)):
            found[line.step][line.rank] = (float(loss), line.nbytes, line.at_s - run.begin_s)
    points = []
    for step, of_rank in sorted(found.items()):
        losses, nbytes, seconds = zip(*of_rank.values(), strict=True)
        points.append(Point(step, statistics.fmean(losses), sum(nbytes), max(seconds)))
    return points
