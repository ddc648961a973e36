"""When a worker takes a merged fragment over: as they come, on time, or as it was recorded.

A worker that takes fragments over as they come never waits. The others wait for each other: they
are for runs that must be what they are to the bit.
"""

from __future__ import annotations

from typing import Protocol

from localsgd.decoupled.merge_log import Recorded
from localsgd.decoupled.offers import Offer
from localsgd.schedules import Streaming


class Timing(Protocol):
    """When merged fragments are taken over."""

    def wanted(self, fragment: int, step: int, offer: Offer, newest: int) -> int | None:
        """The number of the merge to take over after a step, waited for; None if none.

        Args:
            offer: this worker's side of the fragment.
            newest: the last one that there is.
        """


class AsTheyCome:
    """Whatever has come."""

    def wanted(self, fragment: int, step: int, offer: Offer, newest: int) -> int | None:
        return newest if newest > offer.taken else None


class OnTime:
    """Each fragment ``delay`` steps after it has left, as in streaming DiLoCo."""

    def __init__(self, streaming: Streaming) -> None:
        self._streaming = streaming

    def wanted(self, fragment: int, step: int, offer: Offer, newest: int) -> int | None:
        # A flush has brought back what had left before.
        away = offer.offered == offer.taken
        return offer.taken + 1 if away and fragment in self._streaming.arriving(step) else None


class AsRecorded:
    """As the log of a run has it."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def wanted(self, fragment: int, step: int, offer: Offer, newest: int) -> int | None:
        return self._recorded.take(fragment, step)
