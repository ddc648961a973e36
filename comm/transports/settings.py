"""What Open MPI should be told before it starts, and where a user may have told it already.

A variable comes before a file, so what a file sets is left to it. ``localsgd run`` sets these for a
whole job; under any other launcher each rank does, before it starts MPI.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

OPEN_MPI = {
    # One TCP connection for a pair of ranks runs half-duplex.
    "OMPI_MCA_btl_tcp_links": "4",
    # Waiting ranks that do not yield burn the cores of those that work.
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # It says in every rank that it has not found what it wants.
    "OMPI_MCA_osc": "^ucx",
    # When it closes, the component for one-sided messages by libfabric sleeps for a second, at the
    # start of every job that does not need it. We send none such.
    "OMPI_MCA_btl": "^ofi",
}
# The files in which a user keeps settings, and what the same settings are called in variables.
_OF_THE_USER = {
    ".openmpi/mca-params.conf": "OMPI_MCA_",
    ".prte/mca-params.conf": "PRTE_MCA_",
}
_OF_THE_INSTALLATION = "etc/openmpi-mca-params.conf"


def names_in_files(mpirun: Path) -> set[str]:
    """The variables whose setting the user, or who installed ``mpirun``, keeps in a file."""
    files = [(Path("~") / file, prefix) for file, prefix in _OF_THE_USER.items()]
    files.append((mpirun.resolve().parents[1] / _OF_THE_INSTALLATION, "OMPI_MCA_"))
    names: set[str] = set()
    for file, prefix in files:
        try:
            text = file.expanduser().read_text(errors="replace")
        except (OSError, RuntimeError):
            continue
        names.update(prefix + name for name in re.findall(r"^\s*(\w+)\s*=", text, re.MULTILINE))
    return names


def find_program(name: str) -> str | None:
    """The program of this Python environment, activated or not, or else the one on the path."""
    own = str(Path(sys.prefix) / "bin")
    return shutil.which(name, path=own) or shutil.which(name)
