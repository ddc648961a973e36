"""What the tests under Slurm start jobs with: the libraries, batch scripts, and their output."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from integration.on_hosts import interpreter
from testbed.launch import Library, settings
from testbed.slurm import Slurm

TRAINING = Path(__file__).with_name("training.py")
LIBRARIES: list[Library] = ["openmpi", "mpich"]
# Each library's protocol to find its ranks, as srun names it.
PLUGINS: dict[Library, str] = {"openmpi": "pmix", "mpich": "pmi2"}
LIMIT_S = 60.0


def environment(library: Library) -> dict[str, str]:
    """Where ``python`` is the one with this library, on hosts whose network is ``eth0``."""
    path = f"{Path(interpreter(library)).parent}:{os.environ['PATH']}"
    return {**settings(library), "PATH": path}


@dataclass
class Batch:
    """A batch job.

    Attributes:
        number: by which Slurm knows it.
        written: the file of its output.
    """

    slurm: Slurm
    number: int
    written: Path

    def output(self) -> str:
        return self.written.read_text() if self.written.exists() else ""

    def wait_for(self, pattern: str, *, times: int = 1, timeout_s: float = LIMIT_S) -> None:
        """Returns once its output has a pattern so many times."""
        self._wait(f"{times} times {pattern!r}", lambda: self.count(pattern) >= times, timeout_s)

    def ends(self, *, timeout_s: float = LIMIT_S) -> dict[str, str]:
        """What Slurm says of the job once it runs and waits no more."""
        self._wait(f"the end of job {self.number}", self._has_ended, timeout_s)
        return self.slurm.job(self.number)

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.output()))

    def _has_ended(self) -> bool:
        alive = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}
        return self.slurm.job(self.number)["JobState"] not in alive

    def _wait(self, what: str, condition: Callable[[], bool], timeout_s: float) -> None:
        try:
            self.slurm.wait_for(what, condition, timeout_s=timeout_s)
        except TimeoutError as late:
            raise TimeoutError(f"{late}\nthe job's output:\n{self.output()}") from None


def submit(slurm: Slurm, folder: Path, script: str, library: Library) -> Batch:
    """Hands in a batch script, to run in a folder."""
    written = folder / "output.txt"
    path = folder / "job.sh"
    head, _, rest = script.partition("\n")
    path.write_text(f"{head}\n#SBATCH --chdir={folder} --output={written}\n{rest}")
    return Batch(slurm, slurm.submit(path, env=environment(library)), written)
