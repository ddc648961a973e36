"""One job of ``chaos.py`` in a folder of its own: how it is run, and what is looked at after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_job import DEADLINE_S
from localsgd.checkpoint.manifest import Manifest
from localsgd.checkpoint.rank_file import name_of, read
from soak import Soaked

LIMIT_S = 90.0
STEPS = 14
JOB = Path(__file__).with_name("chaos_job.py")
_DISK = "4m"


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


class Run:
    """Jobs in one folder."""

    def __init__(self, folder: Path, layout: str, averager: str) -> None:
        self.folder, self.layout, self.averager = folder / "work", layout, averager
        self.temporary = folder / "temporary"
        self.folder.mkdir()
        self.temporary.mkdir()

    def job(
        self,
        faults: Mapping[Any, dict[str, Any]],
        *,
        full: dict[str, Any] | None = None,
        workers: int = 0,
        waits: int | None = None,
    ) -> list[str]:
        """The job's program and its plan, which ``chaos_job.py`` reads."""
        plan = {
            "folder": str(self.folder),
            "averager": self.averager,
            "steps": STEPS,
            "faults": faults,
            "full": full,
            "workers": workers,
            "waits": waits,
        }
        path = self.folder / "plan.json"
        path.write_text(json.dumps(plan))
        return [str(JOB), str(path)]

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
        words = ["run", "--fault-tolerant", *(["--respawn"] if respawn else []), "-n", str(size)]
        program = self.job(faults, full=full, workers=size if respawn else 0)
        words += ["--layout", self.layout, *program]
        if full and full["disk"]:
            self._mount()
        output = self.folder / "output"
        with output.open("w") as out:
            job = Soaked.start_command(words, self.temporary, output=out)
        try:
            if kill_after is not None:
                wanted = self.folder / "saves" / f"step-{kill_after // 4 * 4:09d}"
                self.until(lambda: wanted.exists() or job.launcher.poll() is not None)
                os.kill(job.launcher.pid, signal.SIGKILL)
                job.launcher.wait()
            else:
                self.until(lambda: job.launcher.poll() is not None)
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

    def until(self, true: Callable[[], object]) -> None:
        """Returns once that is so, or after so long that something is wrong."""
        deadline = time.monotonic() + LIMIT_S
        while not true() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _mount(self) -> None:
        """Has checkpoints written to a small disk of their own."""
        saves = self.folder / "saves"
        saves.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs"]
        subprocess.run(["mount", *options, str(saves)], check=True)

    def close(self) -> None:
        """Gives up the disk, if there is one."""
        saves = self.folder / "saves"
        if saves.is_mount():
            subprocess.run(["umount", str(saves)], check=True)
