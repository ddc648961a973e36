"""When a fragment is merged: once enough workers are ready, and a while of grace has passed.

Pure: who is ready and what time it is are told.

Source: Decoupled DiLoCo (arXiv 2604.21428).
"""

from __future__ import annotations

from dataclasses import dataclass

from localsgd.checks import checked_count, checked_number


@dataclass(frozen=True)
class Quorum:
    """How many workers a merge needs, and how long it waits for more.

        grace = margin · max(0, delay · step - (quorum + sync))        at most ``longest_s``

    with the time of a local step, that from the first worker ready to the quorum, and that of the
    last merge: of the time in which ``delay`` steps hide a merge, what is not used yet.

    Attributes:
        needed: how many workers; None: more than half of them.
        margin: the share of that time, in [0, 1); 0 waits for nobody.
        longest_s: the most seconds of it.
    """

    needed: int | None = None
    margin: float = 0.0
    longest_s: float = 1.0

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: for a number out of its range.
        """
        if self.needed is not None:
            checked_count("quorum", self.needed, at_least=1)
        checked_number("margin", self.margin, below=1.0)
        checked_number("longest_s", self.longest_s)

    def of(self, size: int) -> int:
        """How many of ``size`` workers.

        Raises:
            ValueError: if more are needed than there are.
        """
        needed = size // 2 + 1 if self.needed is None else self.needed
        if needed > size:
            raise ValueError(f"quorum must be at most the {size} workers, got {needed}")
        return needed

    def grace_s(self, delay: int, step_s: float, quorum_s: float, sync_s: float) -> float:
        """The seconds of grace, as above."""
        hidden_s = max(0.0, delay * step_s - (quorum_s + sync_s))
        return min(self.margin * hidden_s, self.longest_s)


class Gathering:
    """The workers of one fragment that become ready for its next merge.

    Attributes:
        quorum_s: how long the quorum took, once it is there.
        grace_s: how long the others had then.
    """

    def __init__(self, quorum: Quorum, size: int, delay: int) -> None:
        self._quorum, self._size, self._delay = quorum, size, delay
        self._needed = quorum.of(size)
        self._first_at: float | None = None
        self._until: float | None = None
        self.quorum_s = self.grace_s = 0.0

    def is_over(self, ready: int, now: float, step_s: float, sync_s: float) -> bool:
        """Whether the fragment is to be merged now, with ``ready`` workers.

        Args:
            now: seconds on any clock.
            step_s: of a local step.
            sync_s: of the last merge.
        """
        if not ready:
            return False
        if self._first_at is None:
            self._first_at = now
        if not self.has_quorum(ready):
            return False
        if self._until is None:
            self.quorum_s = now - self._first_at
            self.grace_s = self._quorum.grace_s(self._delay, step_s, self.quorum_s, sync_s)
            self._until = now + self.grace_s
        return ready >= self._size or now >= self._until

    def has_quorum(self, ready: int) -> bool:
        """Whether so many workers are enough."""
        return ready >= self._needed

    def begin(self) -> None:
        """Begins anew, after a merge."""
        self._first_at = self._until = None
