"""Does training go on? Faults of all kinds, at random moments, in real processes.

    python tests/chaos.py [--faults 100] [--seed 0] [--from 0] [--averager streaming]

A job trains while its workers meet what a seeded plan has for them (``chaos_job.py``), or is killed
as a whole and started again from checkpoints of which the newest was damaged. After each: it has
ended in time and without an error, those that are left are alike to the bit and have taken all
steps, loss has fallen, the newest checkpoint is whole, and no process, file or segment is left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chaos_job import AVERAGERS, DEADLINE_S, ENDS, ENDS_OF_A_THREAD
from localsgd.checkpoint.manifest import Manifest
from localsgd.checkpoint.rank_file import name_of, read
from soak import Soaked

LIMIT_S = 90.0
STEPS = 14
LAYOUTS = ("4", "2+2", "3+1", "1+1+1+1", "3", "2+1")
DAMAGES = ("a torn file", "a flipped bit", "a lost file", "a torn manifest")
JOB = Path(__file__).with_name("chaos_job.py")


@dataclass
class Outcome:
    """What came of one job.

    Attributes:
        averager: which kind it trained with.
        faults: the kind of every fault in it, with its moment.
        violations: what should not have been, in words.
        recoveries_s: from a worker's end to the next round of those that are left, and which.
    """

    averager: str
    faults: list[str]
    violations: list[str] = field(default_factory=list)
    recoveries_s: list[tuple[float, str]] = field(default_factory=list)


def size_of(layout: str) -> int:
    return sum(map(int, layout.split("+")))


def outcomes(seed: int, first: int, averagers: Sequence[str]) -> Iterator[Outcome]:
    """Of jobs without end; each depends on the seed, its number and the averagers alone."""
    for number in itertools.count(first):
        rng = random.Random(f"{seed} {number}")
        averager = rng.choice(averagers)
        yield (damaged, replaced, lost, lost)[number % 4](rng, averager)


def replaced(rng: random.Random, averager: str = "plain") -> Outcome:
    """A job in which others take the place of those that are lost; one is lost as it joins."""
    return lost(rng, "plain", respawn=True)


def lost(rng: random.Random, averager: str, *, respawn: bool = False) -> Outcome:
    """A job that goes on without workers; one of them has no room on the disk, perhaps."""
    layout = rng.choice(LAYOUTS)
    workers = list(range(size_of(layout)))
    rng.shuffle(workers)
    # Somebody is left.
    victims = workers[: rng.randint(1, len(workers) - 1)]
    faults: dict[int, dict[str, Any]] = {}
    for victim in victims:
        moments = ["between", "in a pass", "while saving"] + (["in a recovery"] if faults else [])
        moment = rng.choice(moments)
        # Rounds begin after steps 3, 6, …, checkpoints after 4, 8, …
        step = rng.choice(
            {"in a pass": [3, 6, 9, 12], "while saving": [4, 8]}.get(
                moment, list(range(2, STEPS - 2))
            )
        )
        if moment == "in a recovery":
            step = next(iter(faults.values()))["step"]
        kind = rng.choice(ENDS_OF_A_THREAD if moment == "while saving" else ENDS)
        faults[victim] = {"step": step, "kind": kind, "moment": moment}
    full = None
    if not respawn and rng.random() < 1 / 3:
        # One of those without room is there to the end.
        left = rng.choice([worker for worker in workers if worker not in victims])
        full = {"step": rng.randint(2, STEPS), "workers": [left, *victims[1:]]}
    strikes = respawn and rng.random() < 0.5
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), layout, averager)
        outcome = Outcome(
            averager, [f"{fault['kind']}, {fault['moment']}" for fault in faults.values()]
        )
        outcome.faults += ["no room on the disk"] if full else []
        plan: dict[int | str, dict[str, Any]] = {**faults}
        if strikes:
            kind = rng.choice(["killed", "a bad address", "an error"])
            plan["new"] = {"kind": kind, "moment": "in a recovery"}
        outcome.violations += run.start(plan, full=full, respawn=respawn)
        reports = run.reports()
        if strikes and (run.folder / "struck-new").exists():
            outcome.faults.append(f"{kind}, in a join")
        # One that strikes in a recovery, or behind a checkpoint, may come too late for this job.
        missing = set(workers) - set(reports)
        struck = {int(path.name.split("-")[1]) for path in run.folder.glob("struck-[0-9]*")}
        if missing != struck:
            outcome.violations.append(f"lost are {missing}, struck were {struck}")
        steps = max((report["steps"] for report in reports.values()), default=0)
        outcome.violations += run.violations(reports, max(steps, STEPS) if respawn else STEPS)
        if respawn and len(reports) != len(workers):
            outcome.violations.append(f"workers must be {len(workers)} again, got {len(reports)}")
        if full and not any(report["full"] for report in reports.values()):
            outcome.violations.append("a checkpoint without room was not noticed")
        outcome.recoveries_s = run.recoveries_s(reports, faults)
        return outcome


def damaged(rng: random.Random, averager: str) -> Outcome:
    """A job that is killed as a whole, and goes on from damaged checkpoints."""
    layout, damage = rng.choice(LAYOUTS), rng.choice(DAMAGES)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), layout, averager)
        outcome = Outcome(averager, ["the launcher killed", damage])
        step = rng.randint(9, STEPS)
        outcome.violations += run.start({}, kill_after=step)
        saves = sorted((run.folder / "saves").glob("step-*"))
        if len(saves) > 1:
            harm(saves[-1], damage, rng)
        outcome.violations += run.start({})
        reports = run.reports()
        outcome.violations += run.violations(reports)
        if len(saves) > 1 and any(
            report["start"] != int(saves[-2].name[5:]) for report in reports.values()
        ):
            outcome.violations.append(f"went on from {reports}, not from {saves[-2].name}")
        digests = {report["digest"] for report in reports.values()}
        if digests != {undisturbed(layout, averager)}:
            outcome.violations.append("the job that went on ended with other bits")
        return outcome


@lru_cache
def undisturbed(layout: str, averager: str) -> str:
    """The digest that a job ends with to which nothing happens."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), layout, averager)
        problems = run.start({})
        if problems:
            raise RuntimeError(f"a job to which nothing happens failed: {problems}")
        return str(run.reports()[0]["digest"])


def harm(checkpoint: Path, damage: str, rng: random.Random) -> None:
    path = rng.choice(sorted(checkpoint.glob("rank-*")))
    content = bytearray(path.read_bytes())
    match damage:
        case "a torn file":
            path.write_bytes(content[: rng.randrange(len(content))])
        case "a flipped bit":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        case "a lost file":
            path.unlink()
        case "a torn manifest":
            manifest = checkpoint / "manifest.json"
            manifest.write_bytes(manifest.read_bytes()[: rng.randrange(100)])


class Run:
    """Jobs in one folder."""

    def __init__(self, folder: Path, layout: str, averager: str) -> None:
        self.folder, self.layout, self.averager = folder / "work", layout, averager
        self._temporary = folder / "temporary"
        self.folder.mkdir()
        self._temporary.mkdir()

    def start(
        self,
        faults: Mapping[Any, dict[str, Any]],
        *,
        full: dict[str, Any] | None = None,
        kill_after: int | None = None,
        respawn: bool = False,
    ) -> list[str]:
        """Runs a job to its end; returns what was wrong with that.

        Args:
            full: after which step which workers have no room on the disk.
            respawn: whether others are started, and it goes on until they are there.
            kill_after: kills the launcher once there is a checkpoint of at least two rounds.
        """
        size = size_of(self.layout)
        plan = {
            "folder": str(self.folder),
            "averager": self.averager,
            "steps": STEPS,
            "faults": faults,
            "full": full,
            "workers": size if respawn else 0,
        }
        (self.folder / "plan.json").write_text(json.dumps(plan))
        words = ["run", "--fault-tolerant", *(["--respawn"] if respawn else []), "-n", str(size)]
        words += ["--layout", self.layout, str(JOB), str(self.folder / "plan.json")]
        output = self.folder / "output"
        with output.open("w") as out:
            job = Soaked.start_command(words, self._temporary, output=out)
        try:
            if kill_after is not None:
                wanted = self.folder / "saves" / f"step-{kill_after // 4 * 4:09d}"
                _until(lambda: wanted.exists() or job.launcher.poll() is not None)
                os.kill(job.launcher.pid, signal.SIGKILL)
                job.launcher.wait()
            else:
                _until(lambda: job.launcher.poll() is not None)
            problems = []
            if job.launcher.poll() is None:
                problems.append(f"it hangs: {self.said()}")
                job.end()
            elif kill_after is None and job.launcher.returncode != 0:
                problems.append(f"it ended with {job.launcher.returncode}: {self.said()}")
            left = job.left()
            return problems + ([f"left behind: {left}"] if left else [])
        finally:
            job.end()

    def said(self) -> str:
        """The end of what the last job has printed."""
        path = self.folder / "output"
        return path.read_text(errors="replace")[-3000:] if path.exists() else "nothing"

    def reports(self) -> dict[int, dict[str, Any]]:
        """What those that are left say, by the number that they had."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("report-*")]
        return {report["number"]: report for report in found}

    def violations(self, reports: dict[int, dict[str, Any]], steps: int = STEPS) -> list[str]:
        if not reports:
            return [f"nobody is left: {self.said()}"]
        found = []
        for what, wanted in (("steps", steps), ("size", len(reports))):
            wrong = {n: r[what] for n, r in reports.items() if r[what] != wanted}
            if wrong:
                found.append(f"{what} must be {wanted}, got {wrong}")
        if len({report["digest"] for report in reports.values()}) > 1:
            found.append("those that are left are not alike")
        for number, report in reports.items():
            first, last = report["losses"]
            if not last < first and report["start"] == 0:
                found.append(f"the loss of {number} went from {first} to {last}")
        newest = max((self.folder / "saves").glob("step-*"), default=None)
        if newest is not None:
            try:
                manifest = Manifest.read(newest)
                for rank, file in enumerate(manifest.files):
                    read(newest / name_of(rank), file)
            except (OSError, ValueError) as error:
                found.append(f"the newest checkpoint is not whole: {error}")
        return found

    def recoveries_s(
        self, reports: dict[int, dict[str, Any]], faults: dict[int, dict[str, Any]]
    ) -> list[tuple[float, str]]:
        """From every end of a worker to the next round, without the deadline of silent ones."""
        found = []
        for number, fault in faults.items():
            struck = self.folder / f"struck-{number}"
            if not struck.exists() or not reports:
                continue
            then = float(struck.read_text())
            rounds = [t for t in next(iter(reports.values()))["rounds"] if t > then]
            if rounds:
                # Another that is silent at that time is waited for as well.
                silent = any(
                    other["kind"] == "stopped" and abs(other["step"] - fault["step"]) < 3
                    for other in faults.values()
                )
                waited = DEADLINE_S if silent and rounds[0] - then > DEADLINE_S else 0.0
                words = f"{fault['kind']}, {fault['moment']}, hosts {self.layout}"
                found.append((rounds[0] - then - waited, words))
        return found


def _until(true: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)


def main(words: Sequence[str]) -> int:
    """1 if there was a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first job")
    parser.add_argument("--averager", choices=AVERAGERS, help="of all jobs; drawn unless given")
    asked = parser.parse_args(words)
    averagers = AVERAGERS if asked.averager is None else (asked.averager,)
    faults: Counter[str] = Counter()
    violations, recoveries = 0, list[tuple[float, str]]()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TimeElapsedColumn()) as progress:
        bar = progress.add_task("faults", total=asked.faults)
        jobs = outcomes(asked.seed, asked.first, averagers)
        for number, outcome in enumerate(jobs, asked.first):
            faults.update(outcome.faults)
            recoveries += outcome.recoveries_s
            violations += len(outcome.violations)
            for violation in outcome.violations:
                what = f"{outcome.averager}, {outcome.faults}"
                progress.console.print(f"job {number} ({what}): {violation}")
            progress.update(bar, advance=len(outcome.faults), description=f"job {number}")
            if faults.total() >= asked.faults:
                break
    for kind, count in sorted(faults.items()):
        print(f"{count:6} {kind}")
    found = sorted(recoveries) or [(math.nan, "none")]
    p99 = found[math.ceil(0.99 * len(found)) - 1][0]
    print("the slowest recoveries:", *(f"{1e3 * s:.0f} ms ({what})" for s, what in found[-3:]))
    middle = median(seconds for seconds, _ in found)
    print(
        f"seed {asked.seed}, jobs {asked.first} to {number}: {faults.total()} faults, {violations} "
        f"violations, recovery median {1e3 * middle:.0f} ms, p99 {1e3 * p99:.0f} ms"
    )
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
