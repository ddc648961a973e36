"""One average, now: arrays of any number of workers moved to their mean in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localsgd.arrays import Arena, FlatArrays, check_arrays
from localsgd.checks import agreed, workers_of
from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Array, Communicator

ArraysLike: TypeAlias = (
    "FlatArrays | Mapping[str, NDArray[Any]] | Sequence[FlatArrays | NDArray[Any]]"
)


def average_parameters(params: ArraysLike, comm: Communicator | None = None) -> None:
    """Moves arrays to their mean over all workers, once, in place. Collective.

    Args:
        params: arenas, their ``grad``, or plain numpy arrays (a mapping or a sequence) of
            floats, writeable, of any shape, alike on all ranks; changed in place.
        comm: the workers; None means the arena's own, or ``localsgd.world()`` for anything
            else. Outside of them (``NON_MEMBER``) nothing happens.

    Raises:
        TypeError, ValueError: if this rank's ``params`` are invalid.
        MismatchError: on every rank, if they differ in number, shape or dtype, or those of
            another rank are invalid.
    """
    if comm is None and isinstance(params, Arena):
        comm = params.comm
    comm = workers_of(comm)
    if comm is NON_MEMBER:
        return
    for array in agreed(comm, "params", lambda: _arrays_of(params), _lines):
        contiguous = np.ascontiguousarray(array)
        comm.allreduce(contiguous.reshape(-1), "mean")
        if contiguous is not array:
            array[...] = contiguous.reshape(array.shape)


def _arrays_of(params: object) -> list[Array]:
    if isinstance(params, FlatArrays):
        return [params.flat]
    if isinstance(params, Mapping):
        check_arrays(params)
        return list(params.values())
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise TypeError(f"params must be arenas or numpy arrays, got {params!r}")
    arrays = [entry.flat if isinstance(entry, FlatArrays) else entry for entry in params]
    check_arrays({str(index): array for index, array in enumerate(arrays)})
    return arrays


def _lines(arrays: Sequence[Array]) -> list[str]:
    return [
        f"array {index} {np.dtype(array.dtype).name}{list(array.shape)}"
        for index, array in enumerate(arrays)
    ]
