"""Where workers' published copies and merged fragments lie in the memory that a host shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from localsgd.comm.contract import Array, Communicator
from localsgd.decoupled.records import Record, Shapes

# The counters of a published copy: the merge it goes from, the step after which it was taken, what
# the worker has seen (-1: it records no samples) and done since, and how long a step of it takes.
BASE, STEP, TOKENS, STEPS, STEP_NS = range(5)
# The last merge that the worker has taken over; stands for itself.
TAKEN = 5
# The first counter of a merged fragment: how many merges there were. Behind it there is for every
# rank the last in which it was merged, and the last in which it was left out.
ROUND = 0


class Shelves:
    """The records of all fragments, as one rank sees them.

    Attributes:
        published: by fragment, then rank: the copy that this worker offers.
        merged: by fragment.
    """

    def __init__(self, comm: Communicator, shapes: Sequence[Shapes]) -> None:
        """Collective.

        Args:
            shapes: of every fragment, its parts' lengths and dtypes.
        """
        self._size = comm.size
        words = [TAKEN + 1] * len(shapes)
        of_each = [Record.nbytes(*pair) for pair in zip(words, shapes, strict=True)]
        begins = [0, *accumulate(of_each)]
        own = comm.allocate(begins[-1], np.uint8)
        everywhere = comm.neighbours(own)
        self.published = [
            [
                _record(everywhere[rank], begins[index], TAKEN + 1, shape)
                for rank in range(comm.size)
            ]
            for index, shape in enumerate(shapes)
        ]
        heads = 1 + 2 * comm.size
        filled = [0] * comm.size
        places: list[int] = []
        for index, shape in enumerate(shapes):
            places.append(filled[self.owner_of(index)])
            filled[self.owner_of(index)] += Record.nbytes(heads, shape)
        room = comm.neighbours(comm.allocate(max(filled), np.uint8))
        self.merged = [
            _record(room[self.owner_of(index)], places[index], heads, shape)
            for index, shape in enumerate(shapes)
        ]

    def owner_of(self, fragment: int) -> int:
        """The rank that merges a fragment."""
        return fragment % self._size

    def given_in(self, words: Sequence[int], rank: int) -> int:
        """The last merge of which a rank's copy was a part, by a merged fragment's counters."""
        return words[1 + rank]

    def left_out_in(self, words: Sequence[int], rank: int) -> int:
        """The last merge from which a rank was left out."""
        return words[1 + self._size + rank]


def _record(memory: Array, begin: int, words: int, shape: Shapes) -> Record:
    return Record(memory[begin : begin + Record.nbytes(words, shape)], words, shape)
