"""What carries messages: threads, a group of one, and MPI.

``mpi`` is not imported here: importing it starts MPI.
"""

from .settings import OPEN_MPI, find_program, names_in_files
from .solo import SoloTransport, solo
from .threads import current_group, run_threads

__all__ = [
    "OPEN_MPI",
    "SoloTransport",
    "current_group",
    "find_program",
    "names_in_files",
    "run_threads",
    "solo",
]
