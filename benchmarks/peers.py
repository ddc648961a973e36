"""What others offer for the same thing: MPI's own reduction and torch's averager over gloo."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# How localsgd.torch sets malloc up, for peers that are given the same.
MEMORY_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": "-1"}


def tensors(count: int, pieces: int) -> dict[str, Array]:
    """A model of ``count`` float32 in ``pieces`` arrays of equal size."""
    if count % pieces:
        raise ValueError(f"pieces must divide count, got {count} and {pieces}")
    return {f"t{i}": np.ones(count // pieces, np.float32) for i in range(pieces)}


def mpi_mean(buffer: Array) -> Callable[[], None]:
    """``MPI_Allreduce`` in place, then scaling."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    share = np.float32(1.0 / world.Get_size())

    def average() -> None:
        world.Allreduce(MPI.IN_PLACE, buffer)
        np.multiply(buffer, share, out=buffer)

    return average


def has_torch() -> bool:
    """Whether torch can be imported; equal in all environments of one kind."""
    try:
        import torch
    except ImportError:
        return False
    torch.set_num_threads(1)
    return True


def mpi_rank() -> int:
    """This process's rank in its MPI job; in a job of ours after ``localsgd.world()``."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank()


def join_gloo() -> None:
    """Makes the ranks of this MPI job a gloo group of torch, one thread each. Collective."""
    import torch.distributed as dist
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    folder = tempfile.mkdtemp(prefix="gloo-") if world.Get_rank() == 0 else ""
    folder = world.bcast(folder)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=world.Get_rank(),
        world_size=world.Get_size(),
    )
    world.Barrier()
    if world.Get_rank() == 0:
        (Path(folder) / "store").unlink(missing_ok=True)
        Path(folder).rmdir()


def torch_mean(count: int, pieces: int) -> Callable[[], None]:
    """torch's ``average_parameters`` of a model of ``count`` float32 in ``pieces`` parameters."""
    import torch
    from torch.distributed.algorithms.model_averaging.utils import average_parameters
    from torch.distributed.distributed_c10d import GroupMember

    params = [torch.nn.Parameter(torch.ones(count // pieces)) for _ in range(pieces)]
    group = GroupMember.WORLD
    assert group is not None, "torch.distributed must be initialised"

    def average() -> None:
        average_parameters(iter(params), group)

    return average


def leave_gloo() -> None:
    """Ends the gloo group. Collective."""
    import torch.distributed as dist

    dist.destroy_process_group()
