"""An arena whose numbers are elsewhere, as on a device; its buffer is a place for copies."""

from __future__ import annotations

from abc import abstractmethod

from localsgd.arrays.arena import Arena, FlatArrays
from localsgd.comm.codecs import Codec, PlacedCodec
from localsgd.comm.contract import Communicator, Update


class Elsewhere(Arena):
    """The same buffer and names as another arena, with an average of its own."""

    def __init__(self, arena: Arena) -> None:
        """Not collective: the ranks have agreed on the arena."""
        FlatArrays.__init__(self, arena.layout, arena.flat)
        self._comm, self._grad = arena.comm, None

    @abstractmethod
    def average(
        self,
        group: Communicator,
        *,
        weight: float | None = None,
        codec: Codec | PlacedCodec | None = None,
        update: Update | None = None,
        mix: float = 0.0,
        finite: bool = False,
        label: str = "",
    ) -> None:
        """Averages the numbers over a group, as ``Communicator.allreduce`` does. Collective.

        Where it raises ``NotFiniteError`` the buffer has what that says.
        """
