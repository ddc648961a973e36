"""What can go wrong between workers, as exceptions that name ranks.

A user's own mistake is a ``ValueError`` or ``TypeError``; the errors here are those that
only a group of workers can have. Each is raised on every rank that can still raise.
"""

from __future__ import annotations

from collections.abc import Sequence


class MismatchError(ValueError):
    """The ranks of a group called, or hold, different things where they must be equal."""


class NoWeight(ValueError):
    """Every rank of the group gave weight 0, so there is no mean; nothing has changed."""


class NotFiniteError(ValueError):
    """Some rank gave NaN or infinity to a mean that was to be finite.

    Where the mean is not finite every rank holds what it held before.

    Attributes:
        found: for every rank how many of its numbers are not finite, and the place of the first.
        ranks: those that gave such numbers; none if the mean of finite ones overflows.
    """

    def __init__(self, message: str, found: Sequence[tuple[int, int]]) -> None:
        super().__init__(message)
        self.found = tuple((count, first) for count, first in found)
        self.ranks = tuple(rank for rank, (count, _) in enumerate(self.found) if count)


class RankFailure(RuntimeError):
    """A peer died, raised, left, or stayed silent for longer than the deadline.

    Attributes:
        ranks: the ranks of the group that did not take part.
    """

    def __init__(self, message: str, ranks: Sequence[int]) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class RankSilent(RankFailure):
    """Peers stayed silent for longer than the deadline; they may be alive."""


def name_ranks(ranks: Sequence[int]) -> str:
    """The words for some ranks in a message: ``rank 3`` or ``ranks 0, 2``."""
    words = ", ".join(str(rank) for rank in ranks)
    return f"rank {words}" if len(ranks) == 1 else f"ranks {words}"


def require_length(nbytes: int, expected: int, source: int) -> None:
    """Raises MismatchError unless a message from ``source`` is as long as it should be."""
    if nbytes != expected:
        raise MismatchError(
            f"the message from rank {source} must have {expected} bytes, got {nbytes}"
        )
