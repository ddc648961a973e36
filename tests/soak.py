"""Does anything stay behind? Averages of 8 crowded ranks, and jobs killed at a random moment.

    python tests/soak.py [--averages 200] [--kills 50] [--seed 0]

A job's processes carry a mark in their environment, so that all of them are found, wherever they
went. Left behind is whatever of it is still there a while after the job: a process, a file in its
folder for temporary files, or a segment in /dev/shm that nobody has mapped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from rich.progress import Progress

import localsgd

VICTIMS = ("a rank", "mpirun", "the launcher")
SHARED = Path("/dev/shm")
LIMIT_S = 60.0
MARK = "LOCALSGD_SOAK"
_RANK_NAMES = ("PMIX_RANK", "PMI_RANK")
_LONGEST_DELAY_S = 2.0
_WORKER = "--worker"


def work(averages: int) -> None:
    """What every rank does: averages in shared and private memory, whole and by halves."""
    comm = localsgd.world(deadline_s=LIMIT_S)
    shared, private = comm.allocate(300_000, np.float32), np.ones(300_000, np.float32)
    half = comm.split(comm.rank % 2)
    for turn in range(averages):
        comm.allreduce(private if turn % 3 == 0 else shared, "mean")
        half.allreduce(shared, "mean")
        comm.start(lambda group: group.allreduce(shared[:1000], "mean")).wait()


@dataclass
class Soaked:
    """A job and what marks it.

    Attributes:
        mark: the value in the environment of all its processes.
        temporary: its folder for temporary files.
        segments: what was in /dev/shm before it.
    """

    mark: str
    temporary: Path
    segments: set[Path]
    launcher: subprocess.Popen[bytes]

    @classmethod
    def start(cls, ranks: int, averages: int, temporary: Path) -> Soaked:
        """Starts ``ranks`` workers that hold so many averages."""
        words = ["run", "-n", str(ranks), __file__, _WORKER, str(averages)]
        return cls.start_command(words, temporary)

    @classmethod
    def start_command(
        cls, words: Sequence[str], temporary: Path, *, output: IO[str] | int = subprocess.DEVNULL
    ) -> Soaked:
        """Starts ``localsgd`` with these words."""
        mark, segments = uuid.uuid4().hex, set(SHARED.iterdir())
        launcher = subprocess.Popen(
            [sys.executable, "-m", "localsgd.cli", *words],
            env={**os.environ, MARK: mark, "TMPDIR": str(temporary)},
            stdout=output,
            stderr=output,
        )
        return cls(mark, temporary, segments, launcher)

    def processes(self) -> dict[int, dict[str, str]]:
        """The environment of each process of the job, ended but unreaped ones left out."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "environ").read_bytes().split(b"\0")
                pairs = (word.decode(errors="replace").partition("=") for word in words)
                environment = {name: value for name, _, value in pairs}
                if environment.get(MARK) == self.mark:
                    found[int(entry.name)] = environment
        return found

    def victims(self, kind: str) -> list[int]:
        """The processes of the job that are of a kind of ``VICTIMS``."""
        if kind == "the launcher":
            return [self.launcher.pid] if self.launcher.poll() is None else []
        found = self.processes()
        ranks = [pid for pid, env in found.items() if any(name in env for name in _RANK_NAMES)]
        if kind == "a rank":
            return [pid for pid in ranks if "python" in _name(pid)]
        return [pid for pid in found if pid not in ranks and _name(pid).startswith(("mpi", "prt"))]

    def left(self) -> list[str]:
        """What is still there of the job, in words, once it had time to end."""
        there: list[str] = []

        def nothing() -> bool:
            # Other jobs come and go: what is there at one moment of the limit does not stay.
            there[:] = self.there()
            return self.launcher.poll() is not None and not there

        _until(nothing, LIMIT_S)
        return there

    def there(self) -> list[str]:
        """What is there of the job now: processes, and files that nobody uses."""
        found = [f"process {pid} ({_name(pid)})" for pid in self.processes()]
        mapped = {path for entry in Path("/proc").glob("[0-9]*") for path in _mapped(entry)}
        # A folder of another job is used as long as something in it is.
        mapped |= {str(Path(path).parent) for path in mapped}
        segments = {str(path) for path in set(SHARED.iterdir()) - self.segments} - mapped
        # Hydra's description of the machine bears no name of the job, and stays if it is killed.
        # What a job that has failed said is kept.
        meant = ("hwloc", "localsgd-failed-")
        files = [
            str(path)
            for path in self.temporary.iterdir()
            if not any(name in path.name for name in meant)
        ]
        return [*found, *sorted(segments), *files]

    def end(self) -> None:
        """Kills what is left."""
        for pid in [*self.processes(), self.launcher.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()


def averages_leave(ranks: int, averages: int) -> list[str]:
    """What a job of so many averages leaves behind.

    Raises:
        RuntimeError: if the job fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Soaked.start(ranks, averages, Path(folder))
        try:
            code = job.launcher.wait(10 * LIMIT_S)
            if code != 0:
                raise RuntimeError(f"the job of {ranks} ranks ended with {code}")
            return job.left()
        finally:
            job.end()


def kill_leaves(kind: str, ranks: int, rng: random.Random) -> list[str]:
    """What an endless job leaves behind of which one process is killed at a random moment.

    The moment is up to two seconds after there is such a process: while MPI starts, while the
    ranks meet, or in the middle of their averages.
    """
    delay_s = rng.uniform(0, _LONGEST_DELAY_S)
    with tempfile.TemporaryDirectory() as folder:
        job = Soaked.start(ranks, 10**9, Path(folder))
        try:
            wanted = ranks if kind == "a rank" else 1
            _until(lambda: len(job.victims(kind)) >= wanted, LIMIT_S)
            time.sleep(delay_s)
            victim = rng.choice(sorted(job.victims(kind)))
            os.kill(victim, signal.SIGKILL)
            return job.left()
        finally:
            job.end()


def _until(true: Callable[[], bool], limit_s: float) -> None:
    """Waits for something to be true, or for the limit."""
    deadline = time.monotonic() + limit_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"


def _mapped(process: Path) -> list[str]:
    """The files of /dev/shm that a process, given by its folder in /proc, has mapped."""
    try:
        maps = (process / "maps").read_text()
    except OSError:
        return []
    return [line.split(maxsplit=5)[-1] for line in maps.splitlines() if f"{SHARED}/" in line]


def main(words: Sequence[str]) -> int:
    """The number of jobs that left something."""
    if words[:1] == [_WORKER]:
        work(int(words[1]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--averages", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    rng, bad, begin = random.Random(asked.seed), 0, time.monotonic()
    kinds: Counter[str] = Counter()
    with Progress() as progress:
        bar = progress.add_task("averages", total=(asked.averages > 0) + asked.kills)
        if asked.averages:
            left = averages_leave(8, asked.averages)
            progress.console.print(f"{asked.averages} averages of 8 ranks left {left or 'nothing'}")
            progress.advance(bar)
            bad += bool(left)
        for number, kind in enumerate(itertools.islice(itertools.cycle(VICTIMS), asked.kills), 1):
            progress.update(bar, description=f"killing {kind}")
            left = kill_leaves(kind, 4, rng)
            if left:
                progress.console.print(f"kill {number}, {kind}, left {left}")
            progress.advance(bar)
            kinds[kind] += 1
            bad += bool(left)
    killed = ", ".join(f"{count} times {kind}" for kind, count in kinds.items()) or "nothing"
    print(f"killed {killed}; {bad} jobs left something; {time.monotonic() - begin:.0f} s")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
