"""What ranks of other hosts are told at once, and what they are asked.

The board tells a rank's own host. Between hosts such a record is a message that nobody expects;
it is looked for by whoever has waited for a while, on whatever message. A failure goes to every
rank of the other hosts, the end of a rank's part to those that hear from it in every collective.
A rank that has waited for long asks those for whom it waits; one that waits itself answers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import NamedTuple

from ..contract import RECORD_BYTES, Transport
from ..errors import RankFailure

_FORMAT = struct.Struct("<4q")
_FAILED, _LEFT, _ASKS, _WAITS, _SAYS = range(1, 6)
_TEXT_BYTES = RECORD_BYTES - _FORMAT.size


class Answer(NamedTuple):
    """What a rank of another host that waits says of it.

    Attributes:
        ranks: for whom.
        words: where those were last seen, each with its rank; of a few.
    """

    ranks: list[int]
    words: list[tuple[int, str]]


class News:
    """What one rank of a group announces, and what has been announced to it.

    Attributes:
        answers: those that have come to this rank's last questions, by who has answered.
        said: the ranks of which others have said that they are late, since it was last emptied.
        unanswered: who has asked this rank, and in which collective.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._failed: dict[int, str] = {}
        self._left: dict[int, int] = {}
        self.answers: dict[int, Answer] = {}
        self.said: set[int] = set()
        self.unanswered: dict[int, int] = {}

    def tell_failed(self, reason: str, sequence: int, dests: Sequence[int]) -> None:
        """Tells ranks that this one comes no more, after it failed in a collective."""
        self._tell(_FAILED, sequence, reason, dests)

    def tell_left(self, sequence: int, dests: Sequence[int]) -> None:
        """Tells ranks that this one comes no more, after it ended this many collectives."""
        self._tell(_LEFT, sequence, "", dests)

    def ask(self, sequence: int, dests: Sequence[int]) -> None:
        """Asks ranks for whom they wait, in the collective of this number."""
        self.answers.clear()
        self._tell(_ASKS, sequence, "", dests)

    def answer(self, answer: Answer) -> None:
        """Answers all that have asked."""
        words = list(answer.words)
        while len(text := json.dumps([answer.ranks, words]).encode()) > _TEXT_BYTES and words:
            words.pop()
        if len(text) <= _TEXT_BYTES:
            for dest, sequence in self.unanswered.items():
                self._tell(_WAITS, sequence, text.decode(), [dest])
        self.unanswered.clear()

    def tell_said(self, ranks: Sequence[int], sequence: int, dests: Sequence[int]) -> None:
        """Tells ranks that this one has said for whom it waits."""
        self._tell(_SAYS, sequence, json.dumps(list(ranks)[:100]), dests)

    def check(self, missing: Sequence[int], sequence: int) -> None:
        """Raises RankFailure if a rank has failed, or left before the collective of this number.

        Args:
            missing: the ranks that are waited for. One that failed is not waited for by this rank
                alone, so it ends every wait.
        """
        for record in self._transport.news():
            rank, state, number, length = _FORMAT.unpack_from(record)
            text = record[_FORMAT.size : _FORMAT.size + length].decode(errors="replace")
            if state == _LEFT:
                self._left[rank] = number
            elif state == _FAILED:
                self._failed.setdefault(rank, text)
            elif state == _ASKS:
                self.unanswered[rank] = number
            elif state == _WAITS and number == sequence:
                self.answers[rank] = Answer(*json.loads(text))
            elif state == _SAYS and number == sequence:
                self.said.update(json.loads(text))
        for rank, reason in self._failed.items():
            raise RankFailure(f"rank {rank} failed: {reason}", [rank])
        for rank in missing:
            # What a rank has sent before it left may be on its way still.
            if self._left.get(rank, sequence) < sequence:
                raise RankFailure(f"rank {rank} has closed the group or ended", [rank])

    def _tell(self, state: int, sequence: int, text: str, dests: Sequence[int]) -> None:
        data = text.encode()[:_TEXT_BYTES]
        head = _FORMAT.pack(self._transport.rank, state, sequence, len(data))
        record = (head + data).ljust(RECORD_BYTES, b"\0")
        for dest in dests:
            self._transport.announce(record, dest)
