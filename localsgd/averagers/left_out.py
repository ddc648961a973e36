"""A round's rest, where a worker gave what is not finite: the mean of the others.

Such numbers are few or many, and a round that has them is rare; so this is about their values, not
about time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from localsgd.comm.contract import Array, Communicator, Update

_WINDOW = 1 << 18


def average_rest(
    group: Communicator, flat: Array, weight: float, update: Update | None, label: str
) -> None:
    """Averages what a reduction with ``finite`` left as it was, by these weights.

    Everything else is equal on all ranks by then, and stays so to the bit: its mean is itself, and
    the update does not see it again. Collective; without ``mix``.

    Args:
        weight: 0 on the ranks that are left out.

    Raises:
        NoWeight: on every rank, if nobody is left.
        NotFiniteError: if the mean of the others is not finite.
    """
    rest = None
    if update is not None:
        rest = _Rest(update, differing(group, flat), flat)
    group.allreduce(
        flat, "mean", weight=weight, update=rest, finite=True, label=f"the rest of {label}"
    )


def differing(group: Communicator, flat: Array) -> Array:
    """Which numbers are not the same on all ranks, or not finite: bools of shape ``(n,)``."""
    found = np.empty(flat.size, bool)
    for start in range(0, flat.size, _WINDOW):
        place = slice(start, min(start + _WINDOW, flat.size))
        most, least = flat[place].copy(), flat[place].copy()
        group.allreduce(most, "max")
        group.allreduce(least, "min")
        # A NaN on any rank is a NaN in both, which equals nothing.
        found[place] = (most != least) | ~np.isfinite(most)
    return found


class _Rest:
    """An update of some numbers alone."""

    def __init__(self, update: Update, rest: Array, flat: Array) -> None:
        self._update, self._rest, self._flat = update, rest, flat

    def __call__(self, part: slice, mean: Array) -> None:
        for run in _runs(self._rest[part]):
            place = slice(part.start + run.start, part.start + run.stop)
            self._update(place, mean[run])


def _runs(marked: Array) -> Iterator[slice]:
    """The longest slices in which all are marked."""
    edges = np.diff(marked, prepend=False, append=False).nonzero()[0].tolist()
    yield from map(slice, edges[::2], edges[1::2])
