"""How values go over the wire: what a message between hosts holds for a block of numbers.

Within a host nothing is encoded, since ranks read each other's memory. The owner of a block
keeps what its own message decodes to, so that every rank ends with the same bits.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Message: TypeAlias = NDArray[np.uint8]

# What is on its way: a host's values to the owner of a part, or the result back.
Way: TypeAlias = Literal["values", "result"]


@runtime_checkable
class Codec(Protocol):
    """A stateless way to write a block of numbers as bytes, block by block.

    Where a block has values that are not finite, what is decoded has some, too. A codec may have
    ``check(dtype, count)``, which raises TypeError or ValueError for buffers that it cannot carry,
    and ``keyed(key)``, which gives the codec with random numbers of its own for that key.
    """

    name: str

    def encoded_bytes(self, count: int) -> int:
        """The size of the message for ``count`` numbers, in bytes."""

    def encode(self, values: Array, message: Message) -> None:
        """Writes ``values``, shape ``(n,)``, to ``message``, shape ``(encoded_bytes(n),)``."""

    def decode(self, message: Message, values: Array) -> None:
        """Fills ``values``, shape ``(n,)``, from ``message``."""


@runtime_checkable
class PlacedCodec(Protocol):
    """A codec that remembers what it has written, by place.

    All hosts are alike to it: the owner's host, too, adds to the sum what its values decode to.
    """

    name: str

    def encoded_bytes(self, count: int) -> int:
        """As ``Codec.encoded_bytes``."""

    def at(self, part: slice, way: Way) -> Codec:
        """The codec for these elements of the buffer."""


def at(codec: Codec | PlacedCodec, part: slice, way: Way) -> Codec:
    """What writes and reads these elements of a buffer."""
    return codec.at(part, way) if isinstance(codec, PlacedCodec) else codec


def check(codec: Codec | PlacedCodec, dtype: np.dtype[Any], count: int) -> None:
    """Raises what the codec raises for a buffer that it cannot carry."""
    own = getattr(codec, "check", None)
    if own is not None:
        own(dtype, count)


def keyed(codec: Codec, key: int) -> Codec:
    """The codec with random numbers of its own for this key, if it draws any."""
    own = getattr(codec, "keyed", None)
    made: Codec = codec if own is None else own(key)
    return made


def keyed_at(codec: Codec, *place: object) -> Codec:
    """The codec with random numbers of its own for a place, told by what its ``repr`` names."""
    words = repr(place).encode()
    return keyed(codec, int.from_bytes(blake2b(words, digest_size=8).digest(), "little"))


def require_floats(name: str, dtype: np.dtype[Any]) -> None:
    """Raises TypeError for integers, which codecs of rounded numbers cannot carry."""
    if dtype.kind in "iu":
        raise TypeError(f"codec {name} needs a floating-point buffer, got {dtype.name}")


def as_float32(values: Array) -> Array:
    """The values as codecs compute with them; the array itself if they are so already."""
    with np.errstate(all="ignore"):
        return values.astype(np.float32, copy=False)
