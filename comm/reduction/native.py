"""The reduction handed to the MPI library, for fabrics that reduce in hardware.

The order of summation is the library's: results agree with the exact reduction to rounding only,
and ranks of different jobs or libraries need not agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from ..contract import Array, Op, Transport
from ..dtypes import work_dtype
from .arithmetic import blend
from .finite import finite_runs, write_finite
from .fused import CHUNK, Job


@runtime_checkable
class ReducingTransport(Protocol):
    """A transport that can reduce by itself."""

    def allreduce(self, values: Array, op: Op) -> None:
        """Reduces ``values`` in place with op ``"sum"``, ``"max"`` or ``"min"``."""


def reduce_natively(
    transport: Transport,
    job: Job,
    buffer: Array,
    own: slice,
    spread: Callable[[Array], None],
) -> bool:
    """Reduces a buffer that all ranks have entered with.

    Args:
        own: this rank's shard.
        spread: brings every rank's shard of an array to every rank.

    Returns:
        Whether all numbers of the result are finite; True if that does not matter.
    """
    assert isinstance(transport, ReducingTransport) and job.op is not None
    total = sum(job.weights)
    weight = job.weights[transport.rank]
    result = buffer.astype(work_dtype(buffer.dtype))
    if job.op == "mean":
        # A rank of weight 0 is not read, so that its NaN spoils nothing.
        result[...] = result * (weight / total) if weight else 0.0
    transport.allreduce(result, "sum" if job.op == "mean" else job.op)
    values = result.astype(buffer.dtype, copy=False)
    if job.update is not None:
        for start in range(own.start, own.stop, CHUNK):
            part = slice(start, min(start + CHUNK, own.stop))
            block = values[part]
            for run in finite_runs(block) if job.finite else [slice(0, block.size)]:
                job.update(slice(start + run.start, start + run.stop), block[run])
        if job.spread:
            spread(values)
    if job.finite:
        # Libraries do not promise all ranks the same bits.
        not_finite = np.array([not write_finite(values, [buffer], job.mix)], np.uint8)
        transport.allreduce(not_finite, "max")
        return not not_finite[0]
    if job.mix:
        blend(buffer, values, job.mix, buffer)
    else:
        buffer[...] = values
    return True
