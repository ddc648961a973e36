"""What a worker that joins gets from one of the others.

The parameters, and a state of numbers, texts and arrays, go from one healthy worker to the new
ones alone; nothing changes on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from localsgd.checkpoint import flattened, restored
from localsgd.comm.changes import Change
from localsgd.comm.contract import Array, Communicator


def hand_over(
    comm: Communicator,
    change: Change,
    flats: Sequence[Array],
    state: Callable[[], dict[str, Any]],
    take_over: Callable[[dict[str, Any]], None],
) -> None:
    """Gives the ranks that are new what the lowest healthy rank has. Collective.

    Healthy is who holds finite numbers alone; if nobody does, rank 0 gives.

    Args:
        flats: buffers that are alike on all ranks but for their values.
        state: gives what else there is, on the one that gives.
        take_over: takes it, on those that are new.
    """
    there = len(change.numbers)
    healthy = comm.rank < there and all(bool(np.isfinite(flat).all()) for flat in flats)
    all_healthy = comm.collect(healthy)
    donor = all_healthy.index(True) if any(all_healthy) else 0
    new = range(there, comm.size)
    value, arrays = flattened(state()) if comm.rank == donor else (None, {})
    shapes = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    value, shapes = comm.collect([value, shapes])[donor]
    if comm.rank in new:
        arrays = {name: np.empty(shape, dtype) for name, dtype, shape in shapes}
    for array in (*flats, *(arrays[name] for name, *_ in shapes if arrays)):
        memory = array.reshape(-1)
        if comm.rank == donor:
            comm.exchange(dict.fromkeys(new, memory), {})
        elif comm.rank in new:
            comm.exchange({}, {donor: memory})
    if comm.rank in new:
        take_over(restored(value, arrays))


def difference(mine: Sequence[str], theirs: Sequence[str]) -> str:
    """The first line in which two descriptions differ, in words."""
    for index in range(max(len(mine), len(theirs))):
        here, there = (
            lines[index] if index < len(lines) else "nothing more" for lines in (mine, theirs)
        )
        if here != there:
            return f"{there}, not {here}"
    return "no difference"
