"""How much of its training does a job keep whose workers are struck again and again?"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

import localsgd
from benchmarks.jobs import script, start_losing
from benchmarks.report import Goal, Report
from localsgd import Arena, DiLoCo, Survival, optim

LAYOUT, COUNT, STEP_S, PERIOD = "8+8+8+8", 100_000, 0.5, 20
EVERY_S, DEADLINE_S, LEAST = 30.0, 10.0, 0.98
# From the word that it is over: a round, and what recovers in it.
END_S = 120.0
# SIGUSR2 makes a worker raise an error.
KINDS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGUSR2)
# Until the first strike, and in which a job without strikes shows how fast it is.
QUIET_TURNS = 6


def worker(options: Mapping[str, Any]) -> None:
    """DiLoCo whose steps wait, as for a device; the first rank notes what has entered a round."""
    signal.signal(signal.SIGUSR2, _fail)
    folder = Path(options["folder"])
    comm = localsgd.world(deadline_s=DEADLINE_S)
    arena = Arena({"w": np.ones(COUNT, np.float32)}, comm)
    training = DiLoCo(optim.SGD(arena, lr=0.1), PERIOD, comm=comm)
    survival = Survival(training)
    (folder / f"worker-{os.getpid()}").touch()
    while True:
        # Where a worker begins that joins after a round, so that it asks with the others.
        begins = training.averager.step % PERIOD == 0
        if begins and any(survival.hold(lambda: comm.collect((folder / "over").exists()))):
            break
        time.sleep(STEP_S)
        arena.grad.flat[...] = arena.flat
        rounds = training.averager.rounds
        training.step()
        if comm.rank == 0 and training.averager.rounds > rounds:
            with (folder / "rounds").open("a") as out:
                print(time.time(), comm.size * PERIOD, file=out)


def _fail(number: int, frame: object) -> None:
    raise MemoryError("no room for this batch")


def steps_per_s(strikes: int, struck: Counter[str]) -> float:
    """The steps that entered rounds of a job, of all workers, by second.

    Args:
        strikes: how many there are, one in ``EVERY_S``.
        struck: counts their kinds.
    """
    rng = random.Random(strikes)
    with tempfile.TemporaryDirectory() as name, (Path(name) / "output").open("w+") as output:
        folder = Path(name)
        job = start_losing("benchmarks.goodput", LAYOUT, {"folder": name}, "--respawn", out=output)
        try:
            while not (folder / "rounds").exists():
                _check(job.poll() is None, output)
                time.sleep(0.1)
            begin = time.time()
            turns = strikes or QUIET_TURNS
            for turn in track(range(1, turns + 1), f"{strikes} strikes"):
                if strikes:
                    strike(folder, rng, struck)
                time.sleep(max(0.0, begin + turn * EVERY_S - time.time()))
                _check(job.poll() is None, output)
            (folder / "over").touch()
            _check(_ended(job) == 0, output)
        finally:
            job.terminate()
        lines = (folder / "rounds").read_text().split("\n")
        rounds = [(float(when), int(steps)) for when, steps in map(str.split, lines[:-1])]
    (first, _), (last, _) = rounds[0], rounds[-1]
    return sum(steps for _, steps in rounds[1:]) / (last - first)


def strike(folder: Path, rng: random.Random, struck: Counter[str]) -> None:
    """Strikes a worker that is there, at random."""
    pids = sorted(int(path.name.split("-")[1]) for path in folder.glob("worker-*"))
    kind = rng.choice(KINDS)
    rng.shuffle(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)
            struck[kind.name] += 1
            return


def _ended(job: subprocess.Popen[str]) -> int | None:
    """How it has ended, or None if it does not."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return job.wait(END_S)
    return None


def _check(is_well: bool, output: Any) -> None:
    if not is_well:
        output.seek(0)
        raise RuntimeError(f"the job has ended, or does not end:\n{output.read()[-4000:]}")


def measure(rounds: int) -> Report:
    size = sum(map(int, LAYOUT.split("+")))
    report = Report(
        "goodput",
        f"{__doc__} DiLoCo of {COUNT / 1e6:g} M float32 with {PERIOD} steps of {STEP_S} s between "
        f"rounds, {size} workers on hosts {LAYOUT} of one machine, a strike in {EVERY_S:g} s.",
    )
    struck: Counter[str] = Counter()
    rates = {"no strikes": steps_per_s(0, struck), "strikes": steps_per_s(rounds, struck)}
    report.columns = ["job", "steps a second", "of those without strikes"]
    for name, rate in rates.items():
        report.rows.append([name, f"{rate:.2f}", f"{rate / rates['no strikes']:.4f}"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(struck.items()))
    report.notes.append(f"Strikes: {kinds}.")
    share = rates["strikes"] / rates["no strikes"]
    report.goals.append(
        Goal("goodput", f"{rounds} strikes, {size} workers", share, LEAST, True, "")
    )
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=60, compile_first=False)
