"""What a rank that waits can find out of those it waits for, and who of all that wait says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Late(NamedTuple):
    """For whom the waiting is in the end.

    Attributes:
        ranks: those that have not come, rising. A rank that waits itself is not among them.
        words: where each was last seen.
        where: in what this rank waits, in words; may be empty.
    """

    ranks: list[int]
    words: list[str]
    where: str = ""


class Lookout(Protocol):
    """The eyes of one rank of a group; ``missing`` are the ranks that keep its wait from ending."""

    rank: int

    def check(self, missing: Sequence[int]) -> None:
        """Raises RankFailure if one of the ranks can never come."""

    def computed_s(self) -> float:
        """How long this rank has just computed itself between two collectives."""

    def show(self, missing: Sequence[int]) -> None:
        """Lets others see for whom this rank waits; for nobody any more if empty."""

    def ask(self, missing: Sequence[int]) -> float:
        """Begins to find out more; returns the seconds until as much as can be is known."""

    def late(self, missing: Sequence[int]) -> Late:
        """Who is late, as far as it is known."""

    def speaks(self, missing: Sequence[int], since: float) -> bool:
        """Whether this rank is to say it, as no other has since then."""


class Strangers:
    """Ranks that have not met: nobody can see where the others are."""

    def __init__(self, rank: int, words: str, check: Callable[[Sequence[int]], None]) -> None:
        self.rank, self._words, self.check = rank, words, check

    def computed_s(self) -> float:
        return 0.0

    def show(self, missing: Sequence[int]) -> None:
        pass

    def ask(self, missing: Sequence[int]) -> float:
        return 0.0

    def late(self, missing: Sequence[int]) -> Late:
        return Late(sorted(missing), [self._words])

    def speaks(self, missing: Sequence[int], since: float) -> bool:
        """Rank 0 hears from everybody; the next is to say so if it is rank 0 that is late."""
        return self.rank <= 1
