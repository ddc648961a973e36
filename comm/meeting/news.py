"""What ranks of other hosts are told at once: that a rank has failed, or has left the group.

The board tells a rank's own host. Between hosts such a record is a message that nobody expects;
it is looked for by whoever has waited for a while, on whatever message. A failure goes to every
rank of the other hosts, the end of a rank's part to those that hear from it in every collective.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..contract import RECORD_BYTES, Transport
from ..errors import RankFailure

_FORMAT = struct.Struct("<4q")
_FAILED, _LEFT = 1, 2


class News:
    """What one rank of a group announces, and what has been announced to it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._failed: dict[int, str] = {}
        self._left: dict[int, int] = {}

    def tell_failed(self, reason: str, sequence: int, dests: Sequence[int]) -> None:
        """Tells ranks that this one comes no more, after it failed in a collective."""
        self._tell(_FAILED, sequence, reason, dests)

    def tell_left(self, sequence: int, dests: Sequence[int]) -> None:
        """Tells ranks that this one comes no more, after it ended this many collectives."""
        self._tell(_LEFT, sequence, "", dests)

    def check(self, missing: Sequence[int], sequence: int) -> None:
        """Raises RankFailure if a rank has failed, or left before the collective of this number.

        Args:
            missing: the ranks that are waited for. One that failed is not waited for by this rank
                alone, so it ends every wait.
        """
        for record in self._transport.news():
            rank, state, number, length = _FORMAT.unpack_from(record)
            if state == _LEFT:
                self._left[rank] = number
            else:
                text = record[_FORMAT.size : _FORMAT.size + length]
                self._failed.setdefault(rank, text.decode(errors="replace"))
        for rank, reason in self._failed.items():
            raise RankFailure(f"rank {rank} failed: {reason}", [rank])
        for rank in missing:
            # What a rank has sent before it left may be on its way still.
            if self._left.get(rank, sequence) < sequence:
                raise RankFailure(f"rank {rank} has closed the group or ended", [rank])

    def _tell(self, state: int, sequence: int, text: str, dests: Sequence[int]) -> None:
        data = text.encode()[: RECORD_BYTES - _FORMAT.size]
        head = _FORMAT.pack(self._transport.rank, state, sequence, len(data))
        record = (head + data).ljust(RECORD_BYTES, b"\0")
        for dest in dests:
            self._transport.announce(record, dest)
