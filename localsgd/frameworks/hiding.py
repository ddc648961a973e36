"""The workers of this job, and nothing by which a framework would count them itself.

A framework that finds its launcher's variables starts torch.distributed and wraps the model in DDP,
which averages every gradient: local SGD is then pointless. Under mpirun it fails, since it finds no
address to meet at. So the variables go once the workers are connected, and every process is one by
itself to its framework. Those by which ``localsgd`` tells a rank from what a rank has started stay.
"""

from __future__ import annotations

import os

from localsgd.comm import Communicator
from localsgd.torch import world

# Whatever a framework takes for a number of processes, or for its place among them on a host.
_COUNTS = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("PMI_SIZE", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    *("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("SLURM_NTASKS", "SLURM_NPROCS"),
)


def private_world() -> Communicator:
    """All workers of this job, as ``localsgd.torch.world()``, hidden from frameworks. Collective.

    To be called before the framework looks: before ``TrainingArguments``, ``Accelerator`` or
    Lightning's ``Trainer`` are made. Takes the numbers of processes that ``mpirun``, ``torchrun``
    and ``srun`` have set out of ``os.environ``; what reads them afterwards finds one process.

    Raises:
        RuntimeError: if another process has taken this process's rank.
    """
    comm = world()
    for name in _COUNTS:
        os.environ.pop(name, None)
    return comm
