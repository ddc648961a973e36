"""Which memory a buffer lies in, and so which way a pass over it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .base import Array
from .codecs import Codec
from .entrance import Entrance
from .fused import Job, Pass, Scratches
from .header import Header
from .messages import Mail
from .regions import Regions
from .sharing import share
from .staging import STAGING_BYTES, run_staged
from .topology import Topology


class Reducer:
    """Runs the passes of one rank of a group.

    Attributes:
        host_read, host_written: bytes of neighbours' memory so far.
    """

    def __init__(
        self,
        mail: Mail,
        entrance: Entrance,
        topology: Topology,
        rank: int,
        regions: Regions,
        neighbours: Sequence[int],
    ) -> None:
        """
        Args:
            regions: this rank's shared memory.
            neighbours: the ranks of this host, this one included, by their number in the world.
        """
        self.host_read = self.host_written = 0
        self._mail, self._entrance, self._topology, self._rank = mail, entrance, topology, rank
        self._regions, self._neighbours = regions, tuple(neighbours)
        self._me = topology.neighbours(rank).index(rank)
        self._scratches: dict[np.dtype[Any], Scratches] = {}
        self._staging: tuple[Array, ...] | None = None

    def describe(self, call: Header, buffer: Array, codec: Codec | None = None) -> Header:
        """The header of a call on a buffer, completed by what is known of the buffer."""
        region = self._regions.find(buffer, self._neighbours)
        return replace(
            call,
            dtype=buffer.dtype,
            count=buffer.size,
            region=region.number if region else 0,
            offset=region.offset_of(buffer) if region else 0,
            codec=codec.name if codec else "",
        )

    def run(self, job: Job, buffer: Array) -> None:
        """Passes over a buffer that all ranks have entered with; ends with a host barrier."""
        if buffer.dtype not in self._scratches:
            self._scratches[buffer.dtype] = Scratches(buffer.dtype)
        scratch = self._scratches[buffer.dtype]
        work = Pass(self._mail, self._topology, self._rank, job, buffer.size, scratch)
        region = self._regions.find(buffer, self._neighbours)
        # Overflow and NaN in the data are the data's business.
        with np.errstate(all="ignore"):
            if max(len(ranks) for ranks in self._topology.hosts) == 1:
                work.run([buffer])
            elif region is not None:
                work.run(region.views(buffer, self._neighbours))
                self._entrance.host_barrier()
            else:
                staging = [block.view(buffer.dtype) for block in self._staging_blocks()]
                run_staged(work, buffer, staging, self._me, self._entrance.host_barrier)
        self.host_read += work.host_read
        self.host_written += work.host_written

    def _staging_blocks(self) -> tuple[Array, ...]:
        if self._staging is None:
            shared = share(self._mail, self._topology, self._rank, STAGING_BYTES)
            self._staging = shared.blocks
        return self._staging
