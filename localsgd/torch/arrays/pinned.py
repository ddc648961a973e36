"""Host memory that a GPU copies to and from by itself.

Shared memory comes from the communicator and not from torch, so it is registered with CUDA where
it lies, and given back when the last array on it is gone.
"""

from __future__ import annotations

from weakref import finalize

import numpy as np
import torch

from localsgd.comm.contract import Array


def pin(buffer: Array) -> None:
    """Makes copies between a buffer and CUDA devices direct; nothing where there is no CUDA.

    Raises:
        RuntimeError: if CUDA refuses the memory.
    """
    if not torch.cuda.is_available() or not buffer.nbytes:
        return
    address = int(buffer.__array_interface__["data"][0])
    # type: torch's binding of CUDA's runtime has no annotations
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(address, buffer.nbytes, 0))
    owner = buffer.base if isinstance(buffer.base, np.ndarray) else buffer
    finalize(owner, runtime.cudaHostUnregister, address)
