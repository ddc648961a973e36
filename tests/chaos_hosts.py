"""Hosts that are lost while a job trains on three: one is cut off, dies, or loses all it ran.

Needs what a testbed of hosts needs (``testbed.Hosts``): root, on Linux.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from chaos_run import STEPS, Outcome, Run
from soak import MARK, SHARED, Soaked

ROOT = Path(__file__).resolve().parents[1]
# Last on the path: ``import comm`` must not find the folder of that name here.
sys.path.append(str(ROOT))

from testbed import Hosts  # noqa: E402
from testbed.enter import AGENT  # noqa: E402
from testbed.launch import settings  # noqa: E402

HOSTS, DEADLINE_S = (2, 2, 2), 6.0
LOSSES = ("a cut link", "a dead host", "a host's processes")


def severed(rng: random.Random, averager: str) -> Outcome:
    """A job that is started again, on the hosts that are left, from its last checkpoint."""
    loss, victim = rng.choice(LOSSES), rng.choice((1, 2))
    # All wait behind this step of the first start; checkpoints are written after 4, 8, …
    waits = rng.choice([step for step in range(5, STEPS) if step % 4])
    ranks = sum(HOSTS) - (HOSTS[victim] if loss != "a host's processes" else 0)
    outcome = Outcome(averager, [loss])
    with tempfile.TemporaryDirectory() as folder, Hosts(HOSTS) as hosts:
        run = Run(Path(folder), "+".join(map(str, HOSTS)), averager)

        def strike() -> None:
            if loss != "a host's processes":
                hosts.cut(victim)
            if loss != "a cut link":
                hosts.kill(victim)

        outcome.violations += _watched(run, hosts, waits, strike)
        reports = run.reports()
        outcome.violations += run.violations(reports)
        if len(reports) != ranks:
            outcome.violations.append(f"ranks must be {ranks}, got {len(reports)}")
        starts = {report["start"] for report in reports.values()}
        if starts != {waits // 4 * 4}:
            outcome.violations.append(f"steps were {waits}, and the job went on from {starts}")
    return outcome


def _watched(run: Run, hosts: Hosts, waits: int, strike: Callable[[], None]) -> list[str]:
    """Runs a job that is struck once all wait; returns what was wrong with it."""
    places = ",".join(f"h{host}:{count}" for host, count in enumerate(HOSTS))
    words = ["run", "-n", str(sum(HOSTS)), "--hosts", places, "--restarts", "1"]
    words += ["--host-deadline-s", str(DEADLINE_S), *run.job({}, waits=waits)]
    mark, segments = uuid.uuid4().hex, set(SHARED.iterdir())
    environment = {
        **os.environ,
        **settings("openmpi"),
        "PRTE_MCA_plm_ssh_agent": AGENT,
        "HYDRA_LAUNCHER_EXEC": AGENT,
        MARK: mark,
    }
    with (run.folder / "output").open("w") as out:
        launcher = subprocess.Popen(
            hosts.command_on(0, [sys.executable, "-m", "localsgd.cli", *words]),
            env=environment,
            cwd=ROOT,
            stdout=out,
            stderr=out,
        )
    job = Soaked(mark, run.temporary, segments, launcher)
    try:
        problems = []
        run.until(lambda: (run.folder / "waiting").exists() or launcher.poll() is not None)
        if launcher.poll() is not None:
            return [f"it ended before the loss: {run.said()}"]
        strike()
        run.until(lambda: launcher.poll() is not None)
        if launcher.poll() is None:
            problems.append(f"it hangs: {run.said()}")
        elif launcher.returncode != 0:
            problems.append(f"it ended with {launcher.returncode}: {run.said()}")
        return problems
    finally:
        job.end()
