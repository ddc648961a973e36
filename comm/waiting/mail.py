"""Messages of any length between ranks, and small JSON values from all to all.

A message is cut into pieces that every MPI can send. The values go to rank 0 and back as text;
nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..contract import Array, Arrival, Json, Pending, Transport, as_bytes
from .waiter import Missing, Waiter

CONTROL, MEAN, RESULT, DIRECT, GATHERED = range(5)
_PIECE_BYTES = 1 << 30


class Mail:
    """One rank's messages over a transport, waited for with a deadline.

    Attributes:
        sent, received: payload bytes so far.
        control: bytes of headers and JSON values sent so far.
    """

    def __init__(self, transport: Transport, waiter: Waiter) -> None:
        self._transport, self._waiter = transport, waiter
        self.sent = self.received = self.control = 0

    def send(self, data: Array, dest: int, tag: int) -> list[Pending]:
        """Starts sending; ``data`` must stay as it is until the pieces are done."""
        content = as_bytes(data)
        if tag == CONTROL:
            self.control += content.size
        else:
            self.sent += content.size
        return [self._transport.send(piece, dest, tag) for piece in _pieces(content)]

    def receive(self, into: Array, source: int, tag: int) -> list[Pending]:
        """Starts receiving exactly what fits into ``into``."""
        content = as_bytes(into)
        if tag != CONTROL:
            self.received += content.size
        return [self._transport.receive(piece, source, tag) for piece in _pieces(content)]

    def send_part(self, content: Array, dest: int, control: int) -> Pending:
        """Starts sending few bytes, of which ``control`` are none of the payload."""
        self.control += control
        self.sent += content.size - control
        return self._transport.send(content, dest, CONTROL)

    def receive_up_to(self, into: Array, source: int) -> Arrival:
        """Starts receiving what ``send_part`` sends, of as many bytes as ``into`` or fewer."""
        return self._transport.receive_up_to(into, source, CONTROL)

    def until(self, done: Callable[[], bool], missing: Missing) -> None:
        """Returns once ``done()``; ``missing()`` are the ranks that keep it from being so."""
        self._waiter.until(done, missing)

    def count_up_to(self, arrival: Arrival, control: int) -> int:
        """The length in bytes of what has come; ``control`` of them are none of the payload."""
        self.received += arrival.nbytes - control
        return arrival.nbytes

    def exchange(self, sends: Mapping[int, Array], receives: Mapping[int, Array], tag: int) -> None:
        """Sends to ranks and receives from ranks; all is begun before one is waited for."""
        incoming = [(peer, self.receive(into, peer, tag)) for peer, into in receives.items()]
        outgoing = [(peer, self.send(content, peer, tag)) for peer, content in sends.items()]
        for peer, pieces in incoming + outgoing:
            self.wait(pieces, peer)

    def wait(self, pieces: Sequence[Pending], peer: int) -> None:
        """Returns once all pieces to or from ``peer`` are done."""
        for piece in pieces:
            self._waiter.until(piece.done, lambda: [peer])

    def collect(self, value: Json) -> list[Json]:
        """Every rank's JSON value, in rank order."""
        text = json.dumps(value)
        size, rank = self._transport.size, self._transport.rank
        if size == 1:
            return [json.loads(text)]
        if rank == 0:
            texts = [text] + [self._read(peer) for peer in range(1, size)]
            answer = "[" + ",".join(texts) + "]"
            for peer in range(1, size):
                self._write(answer, peer)
        else:
            self._write(text, 0)
            answer = self._read(0)
        values: list[Json] = json.loads(answer)
        return values

    def _write(self, text: str, dest: int) -> None:
        data = np.frombuffer(text.encode(), np.uint8)
        length = np.array([data.size], np.int64)
        pieces = self.send(length, dest, CONTROL) + self.send(data, dest, CONTROL)
        self.wait(pieces, dest)

    def _read(self, source: int) -> str:
        length = np.empty(1, np.int64)
        self.wait(self.receive(length, source, CONTROL), source)
        data = np.empty(int(length[0]), np.uint8)
        self.wait(self.receive(data, source, CONTROL), source)
        return data.tobytes().decode()


def _pieces(content: Array) -> list[Array]:
    if content.size <= _PIECE_BYTES:
        return [content]
    return [content[i : i + _PIECE_BYTES] for i in range(0, content.size, _PIECE_BYTES)]
