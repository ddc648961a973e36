"""Does training go on? Faults of all kinds, at random moments, in real processes.

    python tests/chaos.py [--faults 100] [--seed 0] [--from 0] [--averager streaming]

A job trains while its workers meet what a seeded plan has for them (``chaos_job.py``), or is killed
as a whole and started again from checkpoints of which the newest was damaged, or loses a host of
three and is started again on those that are left (as root; ``chaos_hosts.py``). After each: it has
ended in time and without an error, those that are left are alike to the bit and have taken all
steps, loss has fallen, the newest checkpoint is whole, and no process, file or segment is left.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chaos_hosts import severed
from chaos_job import AVERAGERS, ENDS, ENDS_OF_A_THREAD
from chaos_run import STEPS, Outcome, Run, size_of

LAYOUTS = ("4", "2+2", "3+1", "1+1+1+1", "3", "2+1")
_IS_ROOT = os.geteuid() == 0
DAMAGES = ("a torn file", "a flipped bit", "a lost file", "a torn manifest")


def outcomes(seed: int, first: int, averagers: Sequence[str]) -> Iterator[Outcome]:
    """Of jobs without end; each depends on the seed, its number and the averagers alone."""
    for number in itertools.count(first):
        rng = random.Random(f"{seed} {number}")
        averager = rng.choice(averagers)
        # Hosts take root and half a minute.
        kinds = (damaged, replaced, lost, severed if number % 16 == 15 and _IS_ROOT else lost)
        yield kinds[number % 4](rng, averager)


def replaced(rng: random.Random, averager: str) -> Outcome:
    """A job in which others take the place of those that are lost; one is lost as it joins."""
    return lost(rng, averager, respawn=True)


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
        disk = _IS_ROOT and rng.random() < 0.5
        others = [] if disk else victims[1:]
        full = {"step": rng.randint(2, STEPS), "workers": [left, *others], "disk": disk}
    strikes = respawn and rng.random() < 0.5
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Run(Path(folder), layout, averager)) as run,
    ):
        outcome = Outcome(
            averager, [f"{fault['kind']}, {fault['moment']}" for fault in faults.values()]
        )
        if full:
            outcome.faults.append("a full disk" if full["disk"] else "no room for one on the disk")
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
