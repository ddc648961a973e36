"""A fragment of a model on its way: its parameters in buffers of their own, and back.

The buffers are what a round in the background works on while local steps change the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from localsgd.arrays import Arena
from localsgd.comm.contract import Array, Communicator


class FragmentPart:
    """The parameters of a fragment that lie in one arena.

    Attributes:
        names, dtype: of the parameters.
        flat: their buffer, shape ``(n,)``, in memory that workers average in place.
    """

    def __init__(self, arena: Arena, names: Sequence[str], comm: Communicator) -> None:
        """Collective."""
        self.names, self.dtype = tuple(names), arena.dtype
        self._places = _joined([arena.slice_of(name) for name in names])
        lengths = [place.stop - place.start for place in self._places]
        self.flat = comm.allocate(sum(lengths), arena.dtype)
        ends = list(accumulate(lengths, initial=0))
        self._own = [slice(*ends) for ends in pairwise(ends)]
        sizes = [arena[name].size for name in names]
        begins = accumulate(sizes, initial=0)
        self._slices = {
            name: slice(begin, begin + size)
            for name, begin, size in zip(names, begins, sizes, strict=False)
        }

    def slice_of(self, name: str) -> slice:
        """The part of ``flat`` that holds this parameter."""
        return self._slices[name]

    def take(self, arena: Arena) -> None:
        """Copies the parameters to the buffer."""
        for own, place in zip(self._own, self._places, strict=True):
            self.flat[own] = arena.flat[place]

    def give(self, arena: Arena, mixing: float) -> None:
        """``parameters = buffer + mixing (parameters - buffer)``."""
        for own, place in zip(self._own, self._places, strict=True):
            theirs = arena.flat[place]
            if mixing:
                theirs -= self.flat[own]
                theirs *= theirs.dtype.type(mixing)
                theirs += self.flat[own]
            else:
                theirs[...] = self.flat[own]

    def shift(self, arena: Arena, before: Array) -> None:
        """``parameters = parameters + (buffer - before)``: what they have moved since stays."""
        np.subtract(self.flat, before, out=before)
        for own, place in zip(self._own, self._places, strict=True):
            arena.flat[place] += before[own]


class Fragment:
    """A fragment, which may lie in several arenas."""

    def __init__(self, names: Sequence[str], arenas: Sequence[Arena], comm: Communicator) -> None:
        """Collective."""
        wanted, self._indices = set(names), list[int]()
        self.parts: list[FragmentPart] = []
        for index, arena in enumerate(arenas):
            mine = [name for name in arena.names if name in wanted]
            if mine:
                self._indices.append(index)
                self.parts.append(FragmentPart(arena, mine, comm))
        self._before: list[Array] | None = None

    def take(self, arenas: Sequence[Arena], *, keep_progress: bool = False) -> None:
        """Copies the parameters to the buffers.

        Args:
            keep_progress: whether to remember them, so that ``give`` leaves in the parameters what
                they have moved since.
        """
        for part, arena in self._pairs(arenas):
            part.take(arena)
        self._before = [part.flat.copy() for part in self.parts] if keep_progress else None

    def give(self, arenas: Sequence[Arena], mixing: float) -> None:
        """Brings the buffers to the parameters, which keep the share ``mixing`` of their own."""
        befores, self._before = self._before, None
        for index, (part, arena) in enumerate(self._pairs(arenas)):
            if befores is None:
                part.give(arena, mixing)
            else:
                part.shift(arena, befores[index])

    def shift(self, arenas: Sequence[Arena], befores: Sequence[Array]) -> None:
        """Adds to the parameters what the buffers are more than ``befores``, which it changes."""
        for (part, arena), before in zip(self._pairs(arenas), befores, strict=True):
            part.shift(arena, before)

    def state(self) -> dict[str, Any]:
        """Copies of what is on its way."""
        before = None if self._before is None else [array.copy() for array in self._before]
        return {"flats": [part.flat.copy() for part in self.parts], "before": before}

    def check_state(self, state: Any) -> None:
        """Raises ValueError unless ``load_state`` can take this over."""
        for array, part in zip(state["flats"], self.parts, strict=True):
            if np.shape(array) != part.flat.shape:
                raise ValueError(
                    f"a saved fragment must have shape {part.flat.shape}, got {np.shape(array)}"
                )

    def load_state(self, state: Any) -> None:
        """Takes over what was on its way."""
        for array, part in zip(state["flats"], self.parts, strict=True):
            part.flat[...] = array
        self._before = None if state["before"] is None else [np.array(a) for a in state["before"]]

    def _pairs(self, arenas: Sequence[Arena]) -> Iterator[tuple[FragmentPart, Arena]]:
        return zip(self.parts, (arenas[index] for index in self._indices), strict=True)


def _joined(places: Sequence[slice]) -> list[slice]:
    """The same places, rising, in as few slices as can be."""
    found: list[slice] = []
    for place in places:
        if found and found[-1].stop == place.start:
            found[-1] = slice(found[-1].start, place.stop)
        else:
            found.append(place)
    return found
