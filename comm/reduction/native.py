"""The reduction handed to the MPI library, for fabrics that reduce in hardware.

The order of summation is the library's: results agree with the exact reduction to rounding only,
and ranks of different jobs or libraries need not agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ..contract import Array, Op, Transport
from ..dtypes import work_dtype
from .arithmetic import blend
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
) -> None:
    """Reduces a buffer that all ranks have entered with.

    Args:
        own: this rank's shard.
        spread: brings every rank's shard of an array to every rank.
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
            job.update(part, values[part])
        if job.spread:
            spread(values)
    if job.mix:
        blend(buffer, values, job.mix, buffer)
    else:
        buffer[...] = values
