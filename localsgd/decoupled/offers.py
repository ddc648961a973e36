"""One worker's side of a fragment: what it goes from, what it offers, how it takes a merge over.

parameters = merged + mixing (parameters - merged)      if its copy was a part of that merge
parameters = parameters + (merged - anchor)             if it came late: its work stays
parameters = merged                                     if it was left out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from localsgd.arrays import Arena
from localsgd.averagers import Fragment
from localsgd.comm import solo
from localsgd.comm.contract import Array
from localsgd.decoupled.records import Record, Shapes

Taken: TypeAlias = Literal["merged", "late", "left out"]


class Offer:
    """A fragment as one worker has it.

    Attributes:
        taken, taken_at: the number of the last merge it took over, and after which step.
        anchor: that merge.
        ready: whether there is something to be merged.
        offered: the merge that its published copy goes from; -1 before there is one.
        offered_at, tokens: after which step that was taken, and what it had seen.
        warned: whether it was said that it is stale.
    """

    def __init__(self, names: Sequence[str], arenas: Sequence[Arena]) -> None:
        # Buffers of its own: what others read is a record.
        self._fragment = Fragment(names, arenas, solo())
        self._fragment.take(arenas)
        self.taken = self.taken_at = self.offered_at = self.tokens = 0
        self.anchor = [buffer.copy() for buffer in self.buffers]
        self.ready = self.warned = False
        self.offered = -1

    @property
    def buffers(self) -> list[Array]:
        """Where a merge is read to."""
        return [part.flat for part in self._fragment.parts]

    @property
    def shapes(self) -> Shapes:
        """The length and dtype of every part."""
        return [(part.flat.size, part.dtype) for part in self._fragment.parts]

    @property
    def tensors(self) -> list[Mapping[str, slice]]:
        """Where every parameter lies in each part."""
        return [{name: part.slice_of(name) for name in part.names} for part in self._fragment.parts]

    def publish(
        self,
        arenas: Sequence[Arena],
        record: Record,
        step: int,
        tokens: int,
        steps: int,
        step_ns: int,
    ) -> None:
        """Offers the parameters as they are; ``tokens`` is -1 where none are counted."""
        self._fragment.take(arenas)
        record.write([self.taken, step, tokens, steps, step_ns], self.buffers)
        self.offered, self.offered_at, self.tokens = self.taken, step, max(tokens, 0)

    def take(
        self,
        arenas: Sequence[Arena],
        number: int,
        step: int,
        how: Taken,
        mixing: float,
        own: Sequence[Array] | None = None,
    ) -> None:
        """Takes over what is in the buffers.

        Args:
            number, how: of the merge.
            mixing: the share that stays of what a copy has become since it was offered.
            own: that copy, if all that has been done since is to stay.
        """
        if how == "late":
            self._fragment.shift(arenas, self.anchor)
        elif how == "merged" and own is not None:
            self._fragment.shift(arenas, [array.copy() for array in own])
        else:
            self._fragment.give(arenas, mixing if how == "merged" else 0.0)
        for mine, merged in zip(self.anchor, self.buffers, strict=True):
            mine[...] = merged
        self.taken, self.taken_at = number, step
        if how != "late":
            self.ready = False

    def go_back(self, arenas: Sequence[Arena]) -> None:
        """Throws away what was done since the last merge."""
        for buffer, mine in zip(self.buffers, self.anchor, strict=True):
            buffer[...] = mine
        self._fragment.give(arenas, 0.0)
