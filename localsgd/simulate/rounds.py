"""What was held in a simulation: of every collective that moved parameters, when and how much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Held:
    """One collective of one group.

    Attributes:
        begin_s: when its first worker came, in seconds from the beginning.
        met_s: when its last one did.
        end_s: when its last one had ended it.
        workers: how many took part.
        host_bytes: that its workers read and wrote of each other's memory, all together.
        between_bytes: of payload that its workers sent to one another, all together.
    """

    begin_s: float
    met_s: float
    end_s: float
    workers: int = 0
    host_bytes: int = 0
    between_bytes: int = 0


class Rounds:
    """The collectives of a simulation."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Held] = {}

    def add(
        self, name: tuple[int, int], began_s: float, end_s: float, host: int, between: int
    ) -> None:
        """One worker has ended a collective; ``name`` is the same for all its workers."""
        held = self._held.setdefault(name, Held(began_s, began_s, end_s))
        held.begin_s = min(held.begin_s, began_s)
        held.met_s = max(held.met_s, began_s)
        held.end_s = max(held.end_s, end_s)
        held.workers += 1
        held.host_bytes += host
        held.between_bytes += between

    def held(self) -> list[Held]:
        """Those that moved payload, in the order in which they ended."""
        moved = [held for held in self._held.values() if held.host_bytes + held.between_bytes]
        return sorted(moved, key=lambda held: (held.end_s, held.begin_s))
