"""Which memory a buffer lies in, and so which way a pass over it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..codecs import Codec, PlacedCodec
from ..compiled import LARGE_BYTES
from ..contract import Array, Op
from ..dtypes import not_finite
from ..meeting import SMALL_BYTES, Board, Entrance, Header
from ..memory import CannotMap, Regions, share
from ..topology import Topology
from ..waiting import Mail
from .finite import raise_not_finite
from .fused import Job, Pass, Scratches
from .small import Small, is_small
from .staging import STAGING_BYTES, run_staged


class Reducer:
    """Runs the passes of one rank of a group.

    Attributes:
        host_read, host_written: bytes of neighbours' memory so far.
    """

    def __init__(
        self,
        mail: Mail,
        board: Board,
        entrance: Entrance,
        topology: Topology,
        rank: int,
        regions: Regions,
        neighbours: Sequence[int],
        tell: Callable[[Exception], None],
    ) -> None:
        """
        Args:
            regions: this rank's shared memory.
            neighbours: the ranks of this host, this one included, by their number in the world.
            tell: says, once, why memory is not shared.
        """
        self.host_read = self.host_written = 0
        self._mail, self._board, self._entrance = mail, board, entrance
        self._topology, self._rank = topology, rank
        self._one_host = len(topology.hosts) == 1
        self._regions, self._neighbours = regions, tuple(neighbours)
        self._me = topology.neighbours(rank).index(rank)
        self._scratches: dict[tuple[np.dtype[Any], bool], Scratches] = {}
        self._tell = tell
        self._staging: tuple[Array, ...] | None = None
        self._broken: list[Pass] = []

    def describe(
        self, call: Header, buffer: Array, codec: Codec | PlacedCodec | None = None
    ) -> Header:
        """The header of a call on a buffer, completed by what is known of the buffer."""
        region = self._regions.find(buffer, self._neighbours)
        return call._replace(
            dtype=buffer.dtype,
            elements=buffer.size,
            region=region.number if region else 0,
            offset=region.offset_of(buffer) if region else 0,
            detail="" if codec is None else f"codec {codec.name}",
        )

    def small(self, op: Op, buffer: Array, *, plain: bool) -> Small | None:
        """How a buffer is reduced whose values are shown with the headers; None if they are not.

        Args:
            plain: without weights, codec, update and mix; equal on all ranks.
        """
        if not (plain or self._one_host) or not is_small(buffer.nbytes, self._topology):
            return None
        scratches = self._scratch_of(buffer)
        return Small(
            self._board,
            self._entrance,
            self._topology,
            self._rank,
            scratches,
            op,
            buffer.dtype,
            buffer.size,
        )

    def run_small(self, small: Small, job: Job, buffer: Array) -> bool:
        """Reduces a buffer that all ranks have shown and entered with; returns as ``run``."""
        self.host_read += small.run(buffer, job)
        return small.is_finite

    def run(self, job: Job, buffer: Array) -> bool:
        """Reduces a buffer that all ranks have entered with.

        Returns:
            Whether all numbers of the result are finite; True if that does not matter.
        """
        scratch = self._scratch_of(buffer)
        work = Pass(self._mail, self._topology, self._rank, job, buffer.size, scratch)
        region = self._regions.find(buffer, self._neighbours)
        try:
            # Overflow and NaN in the data are the data's business.
            with np.errstate(all="ignore"):
                if max(len(ranks) for ranks in self._topology.hosts) == 1:
                    work.run([buffer])
                elif region is not None:
                    work.run(region.views(buffer, self._neighbours))
                    self._board.show_found(not work.is_finite)
                    self._entrance.host_barrier()
                else:
                    staging = self._staging_blocks(buffer.dtype)
                    run_staged(work, buffer, staging, self._me, self._entrance.host_barrier)
                    if job.finite:
                        self._board.show_found(not work.is_finite)
                        self._entrance.host_barrier()
        except BaseException:
            # Messages may still come, and their memory must be there when they do.
            self._broken.append(work)
            raise
        self.host_read += work.host_read
        self.host_written += work.host_written
        # Every host writes the whole result, so that its ranks know without asking others.
        return work.is_finite and not (job.finite and self._board.any_found())

    def require_finite(self, job: Job, buffer: Array) -> None:
        """Raises NotFiniteError on every rank, after a reduction of which all know that it was not.

        Each rank looks for what it gave; it holds that still.
        """
        counts = job.weights[self._rank] > 0
        raise_not_finite(self._mail.collect(not_finite(buffer) if counts else (0, 0)))

    def _scratch_of(self, buffer: Array) -> Scratches:
        key = buffer.dtype, buffer.nbytes >= LARGE_BYTES
        if key not in self._scratches:
            hosts = len(self._topology.hosts)
            self._scratches[key] = Scratches(buffer.dtype, hosts, large=key[1])
        return self._scratches[key]

    def _staging_blocks(self, dtype: np.dtype[Any]) -> list[Array]:
        """Every neighbour's staging block; small ones where no memory can be shared any more."""
        if self._staging is None:
            try:
                self._staging = share(self._mail, self._topology, self._rank, STAGING_BYTES).blocks
            except (CannotMap, MemoryError) as error:
                self._tell(error)
                self._staging = ()
        if self._staging:
            return [block.view(dtype) for block in self._staging]
        # What a small collective would show: nobody looks at it in this one.
        return self._board.data(self._entrance.sequence, dtype, SMALL_BYTES // dtype.itemsize)
