"""Which buffers lie in memory that the ranks of a host share.

A region is one call of ``allocate``. A group and the groups split from it look buffers up in the
same table, by address; a region is forgotten when this rank's last array on it is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import ReferenceType, finalize, ref

import numpy as np

from ..contract import Array, address_of
from .memfd import Bytes
from .sharing import Place


@dataclass(frozen=True)
class Region:
    """Memory of equal size at every rank of a host.

    Attributes:
        number: names the allocation; equal on all its ranks.
        begin: the address of this rank's own memory.
        nbytes: its size.
        others: the memory of this host's other ranks, by their number in the world.
        place: where others find this rank's own; None if nobody can.
        current: whether all ranks of the group have one, as far as it has not grown since.
    """

    number: int
    begin: int
    nbytes: int
    others: Mapping[int, Bytes]
    place: Place | None = None
    current: bool = True

    def offset_of(self, buffer: Array) -> int:
        """Where a buffer begins, in bytes from the region's begin."""
        return address_of(buffer) - self.begin

    def views(self, buffer: Array, ranks: Sequence[int]) -> list[Array]:
        """The given ranks' memory at the place of ``buffer``, as arrays like it.

        The rank that is not among the others is this one.
        """
        place = slice(self.offset_of(buffer), self.offset_of(buffer) + buffer.nbytes)
        return [
            self.others[rank][place].view(buffer.dtype) if rank in self.others else buffer
            for rank in ranks
        ]


class Regions:
    """This rank's regions.

    Attributes:
        world_rank: this rank's number in the world.
    """

    def __init__(self, world_rank: int) -> None:
        self.world_rank = world_rank
        self._by_begin: dict[int, Region] = {}

    def add(
        self, own: Bytes, number: int, others: Mapping[int, Bytes], place: Place | None = None
    ) -> None:
        """Remembers a block for as long as an array of this rank lies on it."""
        begin = address_of(own)
        self._by_begin[begin] = Region(number, begin, own.nbytes, dict(others), place)
        # numpy lets every view refer to the array that owns the memory, never to another view.
        root = own.base if isinstance(own.base, np.ndarray) else own
        finalize(root, _forget, ref(self), begin)

    def forget(self, begin: int) -> None:
        """Drops the block that begins at this address."""
        self._by_begin.pop(begin, None)

    def grow(self, world_rank: int) -> None:
        """Forgets that all ranks of the group have these regions, as there is a new one.

        Args:
            world_rank: this rank's number in the world from now on.
        """
        self.world_rank = world_rank
        for begin, region in self._by_begin.items():
            self._by_begin[begin] = replace(region, current=False)

    def renew(self, buffer: Array, number: int, others: Mapping[int, Bytes]) -> None:
        """Remembers who shares the region of ``buffer`` now."""
        region = self.holding(buffer)
        if region is not None:
            self._by_begin[region.begin] = replace(
                region, number=number, others=dict(others), current=True
            )

    def holding(self, buffer: Array) -> Region | None:
        """The region that holds ``buffer``, whoever shares it."""
        begin = address_of(buffer)
        for region in self._by_begin.values():
            if region.begin <= begin and begin + buffer.nbytes <= region.begin + region.nbytes:
                return region
        return None

    def find(
        self, buffer: Array, neighbours: Sequence[int], *, before: bool = False
    ) -> Region | None:
        """The region that holds ``buffer`` and that all these ranks of the world share.

        Args:
            before: whether it may be of the group as it was before it grew.
        """
        region = self.holding(buffer)
        if region is None or not (region.current or before):
            return None
        shared = all(r in region.others for r in neighbours if r != self.world_rank)
        return region if shared else None


def _forget(regions: ReferenceType[Regions], begin: int) -> None:
    """Weak, since the memory of workers that are threads would otherwise hold itself."""
    table = regions()
    if table is not None:
        table.forget(begin)
