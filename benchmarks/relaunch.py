"""How long is it from the loss of a host to the first step after the relaunch, and what is lost?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import localsgd
from benchmarks.jobs import ROOT, pythons, script
from benchmarks.report import Goal, Report
from testbed import Hosts, NotAvailable
from testbed.enter import AGENT
from testbed.launch import Library, settings

COUNT, DEADLINE_S, MOST_S = 1_000_000, 10.0, 10.0
INTERVAL, STEPS, LIMIT_S = 5, 40, 200.0
LAYOUT = [2, 2, 2]


def worker(options: Mapping[str, Any]) -> None:
    """Steps of half a second at least until the host is lost; rank 0 saves and notes each."""
    comm, folder = localsgd.world(), Path(options["folder"])
    again = os.environ["LOCALSGD_RESTART"] != "0"
    params, step = comm.allocate(COUNT, np.float32), 0
    if (folder / "saved.npz").exists():
        with np.load(folder / "saved.npz") as found:
            params[...], step = found["params"], int(found["step"])
    while step < STEPS:
        comm.allreduce(params, "mean")
        params += 1
        step += 1
        if comm.rank == 0:
            with (folder / "steps").open("a") as out:
                print(time.time(), step, comm.size, file=out, flush=True)
            if step % INTERVAL == 0:
                np.savez(folder / "unfinished.npz", params=params, step=step)
                (folder / "unfinished.npz").rename(folder / "saved.npz")
                print(f"localsgd: saved step {step}", file=sys.stderr, flush=True)
        if again:
            break
        time.sleep(0.5)


class Loss(NamedTuple):
    """What the loss of a host cost.

    Attributes:
        started_s: seconds until the job was started again.
        stepped_s: until the first step of those that are left.
        steps: how many were lost.
    """

    started_s: float
    stepped_s: float
    steps: int


def loss(library: Library, turn: int) -> Loss:
    """One job that loses one of its hosts."""
    python = pythons()[library]
    with tempfile.TemporaryDirectory() as folder, Hosts(LAYOUT) as hosts:
        places = ",".join(f"h{host}:{count}" for host, count in enumerate(LAYOUT))
        words = ["run", "-n", str(sum(LAYOUT)), "--hosts", places, "--restarts", "1"]
        words += ["--host-deadline-s", str(DEADLINE_S), "-m", "benchmarks.relaunch"]
        words += ["--worker", json.dumps({"folder": folder})]
        agent = {"PRTE_MCA_plm_ssh_agent": AGENT, "HYDRA_LAUNCHER_EXEC": AGENT}
        with subprocess.Popen(
            hosts.command_on(0, [str(python), "-m", "localsgd.cli", *words]),
            cwd=ROOT,
            env={**os.environ, **settings(library), **agent},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as job:
            steps = Path(folder) / "steps"
            _wait_for(steps, 2 * INTERVAL + 1 + turn % INTERVAL, job)
            # Whoever is cut off says nothing; whoever has no power, too.
            hosts.cut(1 + turn % 2)
            struck = time.time()
            hosts.kill(1 + turn % 2)
            assert job.stderr is not None
            started = [time.time() for line in job.stderr if "started again" in line]
            if job.wait(LIMIT_S) != 0:
                raise RuntimeError(f"the job ended with {job.returncode}")
        rows = [line.split() for line in steps.read_text().splitlines()]
    last = max(int(step) for _, step, size in rows if int(size) == sum(LAYOUT))
    when, first, _ = next(row for row in rows if int(row[2]) < sum(LAYOUT))
    return Loss(started[0] - struck, float(when) - struck, last + 1 - int(first))


def _wait_for(steps: Path, count: int, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT_S
    while not steps.exists() or len(steps.read_text().splitlines()) < count:
        if time.monotonic() > end or job.poll() is not None:
            raise RuntimeError(f"the job did not come to step {count}")
        time.sleep(0.02)


def measure(rounds: int) -> Report:
    where = "+".join(map(str, LAYOUT))
    report = Report(
        "relaunch",
        f"{__doc__} Hosts {where}, of which one is cut off and killed; {COUNT / 1e6:g} M float32, "
        f"a checkpoint every {INTERVAL} steps, a deadline of {DEADLINE_S:g} s.",
    )
    for library in pythons():
        try:
            found = [loss(library, turn) for turn in range(rounds)]
        except NotAvailable as reason:
            report.goals.append(
                Goal("relaunch", library, None, DEADLINE_S + MOST_S, False, "s", str(reason))
            )
            continue
        seconds, steps = [entry.stepped_s for entry in found], max(entry.steps for entry in found)
        times = {"first step": seconds, "started again": [entry.started_s for entry in found]}
        report.add_times(f"{library}, hosts {where}", times, "first step")
        median = f"median of {rounds}, {library}, deadline {DEADLINE_S:g} s"
        report.goals += [
            Goal("relaunch", median, float(np.median(seconds)), DEADLINE_S + MOST_S, False, "s"),
            Goal("relaunch", f"most of {rounds}, {library}", steps, INTERVAL, False, "steps lost"),
        ]
    return report


if __name__ == "__main__":
    script(measure, worker, rounds=5, compile_first=False)
