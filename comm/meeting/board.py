"""What the ranks of a host show each other: arrivals, headers, and why somebody cannot come.

Every rank has one page that its neighbours read and only it writes. A barrier is a counter per
rank. Headers and the data of small collectives alternate between two slots: what a rank writes for
the next collective spares what neighbours that have not left the last still read. Counters are
aligned 64-bit words, each in a cache line of its own; they are stored after what they announce,
which x86-64 keeps in order and the interpreter's own atomic operations keep in order elsewhere.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..contract import Array
from ..errors import RankFailure
from ..memory import Bytes
from . import header

SMALL_BYTES = 16_384
PAGE_BYTES = 4096 + 2 * SMALL_BYTES
_ARRIVED, _STATE, _BEAT, _SLOTS, _SLOT_BYTES = 0, 8, 9, 128, 128
# Times and a flag, in words of 8 bytes.
_ENTERED, _LEFT_AT, _SAID_AT, _FOUND = 48, 49, 50, 51
# Where the texts begin; the rest of 4096 bytes is ``Progress``'s.
_TEXT, _LABEL, _SAID, _END = 512, 2304, 2816, 3072
_TOO_LONG = bytes([255] * 8)
_MOST_VIEWS = 64
_FAILED, _LEFT = 1, 2
# A rank that waits shows so four times a second, and more seldom on a busy machine.
_BEAT_NS = 2_000_000_000


class Sighting(NamedTuple):
    """What a rank of this host has last shown of itself.

    Attributes:
        packed: the header of the last collective of the group that it began.
        label: what that is for; may be empty.
        entered, left: when its last call on the group began and when one last ended; 0 for never.
        process: its number.
    """

    packed: bytes
    label: str
    entered: float
    left: float
    process: int

    def __str__(self) -> str:
        return header.name(self.packed, self.label)


class Board:
    """The pages of one host's ranks.

    Attributes:
        ranks: the group's numbers of the ranks on this host, rising.
        moments: when this rank's last call on the group began, and when one last ended; to be
            stored there, since a method would take longer than the rest of that.
    """

    def __init__(
        self, pages: Sequence[Bytes], ranks: Sequence[int], pids: Sequence[int], rank: int
    ) -> None:
        self.ranks = tuple(ranks)
        self._index = self.ranks.index(rank)
        self._bytes = [page.data for page in pages]
        self._shown = [
            [view[_slot(i) : _slot(i) + header.BYTES] for view in self._bytes] for i in (0, 1)
        ]
        self._words = [view.cast("q") for view in self._bytes]
        self._times = [view.cast("d") for view in self._bytes]
        self.moments = self._times[self._index][_ENTERED : _LEFT_AT + 1]
        self._label = ""
        self._data = [
            [page[begin : begin + SMALL_BYTES] for page in pages]
            for begin in (4096, 4096 + SMALL_BYTES)
        ]
        self._views: dict[tuple[int, np.dtype[Any], int], list[Array]] = {}
        self._pids = tuple(pids)
        self._arrivals = 0

    def arrive(self) -> None:
        """Counts this rank in; ``all_here`` tells when the others have been, too."""
        self._arrivals += 1
        self._words[self._index][_ARRIVED] = self._arrivals

    def all_here(self) -> bool:
        arrivals = self._arrivals
        # A loop, since waiting ranks ask this all the time and a generator takes thrice as long.
        for words in self._words:  # noqa: SIM110
            if words[_ARRIVED] < arrivals:
                return False
        return True

    def absent(self) -> list[int]:
        """The ranks that have not arrived."""
        arrived = zip(self.ranks, self._words, strict=True)
        return [rank for rank, words in arrived if words[_ARRIVED] < self._arrivals]

    def show(self, packed: bytes, sequence: int) -> None:
        """Shows this rank's header for the collective with this number."""
        self._shown[sequence % 2][self._index][:] = packed

    def headers(self, sequence: int) -> bytes:
        """All ranks' headers for the collective with this number, once all are here."""
        return b"".join(self._shown[sequence % 2])

    def show_data(self, buffer: Array, sequence: int) -> None:
        """Shows up to ``SMALL_BYTES`` bytes with the header of that number."""
        self.data(sequence, buffer.dtype, buffer.size)[self._index][...] = buffer

    def data(self, sequence: int, dtype: np.dtype[Any], count: int) -> list[Array]:
        """All ranks' data for the collective with this number, once all are here."""
        key = sequence % 2, dtype, count
        views = self._views.get(key)
        if views is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            nbytes = count * dtype.itemsize
            views = [slot[:nbytes].view(dtype) for slot in self._data[sequence % 2]]
            self._views[key] = views
        return views

    def show_text(self, text: str, sequence: int) -> None:
        """Shows a text with the header of that number, or that it is too long."""
        data = text.encode()
        fits = len(data) <= SMALL_BYTES - 8
        message = len(data).to_bytes(8, "little") + data if fits else _TOO_LONG
        self.show_data(np.frombuffer(message, np.uint8), sequence)

    def texts(self, sequence: int) -> list[str] | None:
        """All ranks' texts for the collective with this number; None if one is too long."""
        messages = [slot.tobytes() for slot in self._data[sequence % 2]]
        if any(message.startswith(_TOO_LONG) for message in messages):
            return None
        lengths = [int.from_bytes(message[:8], "little") for message in messages]
        return [m[8 : 8 + n].decode() for m, n in zip(messages, lengths, strict=True)]

    def show_label(self, label: str, digest: bytes) -> None:
        """Shows what a collective is for, whose header has that digest of it."""
        if label is not self._label:
            self._label = label
            page = self._bytes[self._index]
            page[_LABEL : _LABEL + 8] = digest
            self._put(_LABEL + 8, label, _SAID)

    def sighting(self, rank: int) -> Sighting:
        """Where a rank of this host was last seen."""
        index = self.ranks.index(rank)
        packed = self._last_header(index)
        page, times = self._bytes[index], self._times[index]
        is_of_this = bytes(page[_LABEL : _LABEL + 8]) == packed[header.DETAIL]
        label = self._get(index, _LABEL + 8) if is_of_this else ""
        return Sighting(
            packed, label.partition(",")[0], times[_ENTERED], times[_LEFT_AT], self._pids[index]
        )

    def show_found(self, found: bool) -> None:
        """Shows whether this rank has found something, before a barrier."""
        self._words[self._index][_FOUND] = found

    def any_found(self) -> bool:
        """Whether a rank of this host has; until this one enters the next collective."""
        return any(words[_FOUND] for words in self._words)

    def begun(self, rank: int) -> int:
        """How many collectives a rank of this host has begun."""
        return header.sequence_of(self._last_header(self.ranks.index(rank)))

    def say(self, ranks: str, now: float) -> None:
        """Shows for which ranks this one has said that they are late."""
        self._put(_SAID, ranks, _END)
        self._times[self._index][_SAID_AT] = now

    def said(self, rank: int) -> tuple[str, float]:
        """What a rank of this host has last shown by ``say``, and when."""
        index = self.ranks.index(rank)
        return self._get(index, _SAID), self._times[index][_SAID_AT]

    def write(self, text: str) -> None:
        """Leaves a message on this rank's page."""
        self._put(_TEXT, text, _LABEL)

    def read(self, rank: int) -> str:
        """The message on a rank's page."""
        return self._get(self.ranks.index(rank), _TEXT)

    def fail(self, reason: str) -> None:
        """Tells the neighbours that this rank will not come any more."""
        self.write(reason)
        self._words[self._index][_STATE] = _FAILED

    def leave(self) -> None:
        """Tells the neighbours that this rank has closed the group."""
        self._words[self._index][_STATE] = _LEFT

    def beat(self) -> None:
        """Shows that this rank is alive, and waits for others."""
        self._words[self._index][_BEAT] = time.monotonic_ns()

    def going_on(self) -> list[int]:
        """The neighbours that are alive and have neither failed nor left."""
        return [
            rank
            for index, rank in enumerate(self.ranks)
            if index != self._index
            and self._words[index][_STATE] == 0
            and _is_alive(self._pids[index])
        ]

    def kill(self, rank: int) -> None:
        """Ends the process of a silent rank of this host, unless it has ended, or is this one.

        One that waits itself is not silent: it will give up as this one has.
        """
        if rank not in self.ranks:
            return
        index = self.ranks.index(rank)
        is_waiting = time.monotonic_ns() - self._words[index][_BEAT] < _BEAT_NS
        if not is_waiting and self._pids[index] != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(self._pids[index], signal.SIGKILL)

    def check(self, missing: Sequence[int]) -> None:
        """Raises RankFailure if a rank of this host that is waited for can never come."""
        for rank in missing:
            if rank not in self.ranks:
                continue
            index = self.ranks.index(rank)
            if self._words[index][_STATE] == _FAILED:
                raise RankFailure(f"rank {rank} failed: {self.read(rank)}", [rank])
            # A rank that came and then left, or died, has done its part.
            if self._words[index][_ARRIVED] >= self._arrivals:
                continue
            if self._words[index][_STATE] == _LEFT:
                raise RankFailure(f"rank {rank} has closed the group or ended", [rank])
            if not _is_alive(self._pids[index]):
                raise RankFailure(
                    f"rank {rank} (process {self._pids[index]}) has died; it was last seen in "
                    f"{self.sighting(rank)}",
                    [rank],
                )

    def _last_header(self, index: int) -> bytes:
        slots = [bytes(shown[index]) for shown in self._shown]
        return max(slots, key=header.sequence_of)

    def _put(self, begin: int, text: str, end: int) -> None:
        data = text.encode()[: end - begin - 8]
        self._bytes[self._index][begin + 8 : begin + 8 + len(data)] = data
        self._words[self._index][begin // 8] = len(data)

    def _get(self, index: int, begin: int) -> str:
        length = self._words[index][begin // 8]
        return bytes(self._bytes[index][begin + 8 : begin + 8 + length]).decode(errors="replace")


def _slot(index: int) -> int:
    return _SLOTS + _SLOT_BYTES * index


def _is_alive(pid: int) -> bool:
    """Whether a process runs, or may: this one can be unable to look."""
    if pid == os.getpid():
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
