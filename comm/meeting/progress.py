"""What every rank of a host shows in all its groups: how far it is, and for whom it waits.

It stands on the pages of the first group, so that a rank that another group waits for is seen
where it is. Ranks are numbered as in that group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..memory import Bytes

_STEP, _NOTE, _END = 3072, 3136, 4096
# A rank that waits shows it four times a second, unless it is stopped.
_NEW_S = 10.0


class Note(NamedTuple):
    """What a rank shows while it waits.

    Attributes:
        group: names the group in which it waits.
        ranks: for whom.
        at: when it was shown.
    """

    group: int
    ranks: list[int]
    at: float


class Progress:
    """The ranks of one host.

    Attributes:
        steps: one number, of the local steps that this rank has taken; to be stored there.
    """

    def __init__(self, pages: Mapping[int, Bytes], rank: int) -> None:
        """``pages`` are the host's, by rank, of which ``rank`` is this one."""
        self._bytes = {number: page.data for number, page in pages.items()}
        self._own = self._bytes[rank]
        self.steps = self._own.cast("q")[_STEP // 8 : _STEP // 8 + 1]

    def step_of(self, rank: int) -> int:
        """The local steps that a rank has taken; 0 if it counts none."""
        return int.from_bytes(self._bytes[rank][_STEP : _STEP + 8], "little")

    def show(self, group: int, ranks: Sequence[int], now: float) -> None:
        """Shows for whom this rank waits; for nobody any more if empty."""
        data = json.dumps(Note(group, list(ranks), now)).encode() if ranks else b""
        if len(data) <= _END - _NOTE - 8:
            self._own[_NOTE + 8 : _NOTE + 8 + len(data)] = data
            self._own[_NOTE : _NOTE + 8] = len(data).to_bytes(8, "little")

    def note(self, rank: int, now: float) -> Note | None:
        """For whom a rank waits, if it does and shows it."""
        page = self._bytes[rank]
        length = int.from_bytes(page[_NOTE : _NOTE + 8], "little")
        try:
            note = Note(*json.loads(bytes(page[_NOTE + 8 : _NOTE + 8 + length])))
        except (ValueError, TypeError):
            # It shows none, or another one just now.
            return None
        return note if now - note.at < _NEW_S else None
