"""How private memory is reduced: through a bounded block that the host shares, window by window.

A window holds the same chunk of every atom, so that every rank's shard moves forward at once and
the sums, their order and the blocks that an update sees are those of shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..contract import Array
from .fused import CHUNK, Pass

STAGING_BYTES = 2 << 20


def run_staged(
    work: Pass, buffer: Array, staging: Sequence[Array], own: int, barrier: Callable[[], None]
) -> None:
    """Runs a pass over private memory.

    Args:
        buffer: this rank's values, shape ``(n,)``; changed in place.
        staging: every neighbour's staging block, as arrays of the buffer's dtype.
        own: the place of this rank's block among them.
        barrier: waits for all ranks of the host.
    """
    if not work.atoms:
        return
    length = max(1, min(CHUNK, staging[own].size // len(work.atoms)))
    work.cut(length)
    for index in range(work.chunks):
        places = []
        for i, atom in enumerate(work.atoms):
            part = atom.chunk(index, work.chunks)
            place = slice(i * length, i * length + part.stop - part.start)
            staging[own][place] = buffer[part]
            places.append((part, place))
        barrier()
        work.step(staging, lambda i, _, found=places: found[i][1], index, 0)  # type: ignore[misc]
        barrier()
        for part, place in places:
            buffer[part] = staging[own][place]
