"""What a pass has on its way between hosts: chunks being sent, and chunks being received."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..codecs import Codec, PlacedCodec, Way, at
from ..contract import Array, Pending
from ..waiting import Mail

# The atom, the chunk of it, and the host that sends it.
Key: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class _Message:
    """Memory, the pieces of it that are under way, and the rank at the other end.

    Attributes:
    """

    data: Array
    pieces: Sequence[Pending]
    peer: int


class Wires:
    """The messages of one pass, by what they are for."""

    def __init__(self, mail: Mail, dtype: np.dtype[Any], codec: Codec | PlacedCodec | None) -> None:
        self._mail, self._dtype, self._codec = mail, dtype, codec
        self._incoming: dict[Key, _Message] = {}
        self._outgoing: dict[tuple[int, int], list[_Message]] = {}

    @property
    def treats_hosts_alike(self) -> bool:
        """Whether the owner's host, too, adds to a sum what its values decode to."""
        return isinstance(self._codec, PlacedCodec)

    def encoded(self, values: Array, part: slice, way: Way) -> Array:
        """A message with the values of a part of the buffer: they themselves without a codec."""
        if self._codec is None:
            return values
        message = np.empty(self._codec.encoded_bytes(values.size), np.uint8)
        at(self._codec, part, way).encode(values, message)
        return message

    def decoded(self, message: Array, part: slice, way: Way) -> Array:
        """What ``encoded`` wrote, as everyone reads it."""
        if self._codec is None:
            return message
        values = np.empty(part.stop - part.start, self._dtype)
        at(self._codec, part, way).decode(message, values)
        return values

    def post(self, data: Array, dest: int, tag: int, index: int) -> None:
        """Begins to send for chunk ``index``; ``data`` must stay as it is until ``finish``."""
        message = _Message(data, self._mail.send(data, dest, tag), dest)
        self._outgoing.setdefault((tag, index), []).append(message)

    def finish(self, tag: int, index: int) -> None:
        """Returns once everything posted for a chunk has been sent."""
        for message in self._outgoing.pop((tag, index), []):
            self._mail.wait(message.pieces, message.peer)

    def expect(
        self, key: Key, length: int, source: int, tag: int, into: Array | None = None
    ) -> None:
        """Begins to receive ``length`` elements; with ``into``, straight to where they belong."""
        if into is not None:
            data = into
        elif self._codec is None:
            data = np.empty(length, self._dtype)
        else:
            data = np.empty(self._codec.encoded_bytes(length), np.uint8)
        pieces = self._mail.receive(data, source, tag)
        self._incoming[key] = _Message(data, pieces, source)

    def arrived(self, key: Key, part: slice, way: Way) -> Array:
        """What was expected, decoded, once it is here."""
        message = self._incoming.pop(key)
        self._mail.wait(message.pieces, message.peer)
        return self.decoded(message.data, part, way)
