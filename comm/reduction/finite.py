"""Results in which every number is finite, and what happens where one is not.

A reduction that is asked for finite results leaves each rank its own numbers where the result is
no finite one. Then whoever gave NaN or infinity holds it still, and nobody else does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..contract import Array
from ..dtypes import all_finite
from ..errors import NotFiniteError
from .arithmetic import blend


def finite_runs(values: Array) -> Iterator[slice]:
    """The longest slices of a block in which every number is finite, rising."""
    if all_finite(values):
        yield slice(0, values.size)
        return
    edges = np.diff(np.isfinite(values), prepend=False, append=False).nonzero()[0].tolist()
    yield from map(slice, edges[::2], edges[1::2])


def write_finite(result: Array, owns: Sequence[Array], mix: float) -> bool:
    """Brings a result to blocks of its shape but where it is not finite; returns whether it is.

    Args:
        owns: what ranks hold, of which each keeps the share ``mix``.
    """
    is_finite = all_finite(result)
    places = slice(None) if is_finite else np.isfinite(result)
    for own in owns:
        if mix:
            blended = np.empty_like(own)
            blend(own, result, mix, blended)
            own[places] = blended[places]
        else:
            own[places] = result[places]
    return is_finite


def raise_not_finite(found: Sequence[tuple[int, int]]) -> None:
    """Says which ranks gave numbers that are not finite.

    Args:
        found: of every rank what ``not_finite`` says.
    """
    words = [
        f"{count} that {'is' if count == 1 else 'are'} not on rank {rank}, first element {first}"
        for rank, (count, first) in enumerate(found)
        if count
    ]
    raise NotFiniteError(
        "the numbers of a mean must be finite, got "
        + ("; ".join(words) or "finite ones of which the mean overflows"),
        found,
    )
