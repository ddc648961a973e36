"""What carries messages: threads, a group of one, and MPI.

``mpi`` is not imported here: importing it starts MPI.
"""

from .office import Key, Office
from .settings import OPEN_MPI, find_program, names_in_files
from .solo import SoloTransport, solo
from .threads import NewThread, ThreadTransport, current_group, run_threads, run_workers

__all__ = [
    "OPEN_MPI",
    "Key",
    "NewThread",
    "Office",
    "SoloTransport",
    "ThreadTransport",
    "current_group",
    "find_program",
    "names_in_files",
    "run_threads",
    "run_workers",
    "solo",
]
