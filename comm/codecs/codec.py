"""How values go over the wire: what a message between hosts holds for a block of numbers.

Within a host nothing is encoded, since ranks read each other's memory. The owner of a block
keeps what its own message decodes to, so that every rank ends with the same bits.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Codec(Protocol):
    """A stateless way to write a block of numbers as bytes, block by block."""

    name: str

    def encoded_bytes(self, count: int) -> int:
        """The size of the message for ``count`` numbers, in bytes."""

    def encode(self, values: NDArray[Any], message: NDArray[np.uint8]) -> None:
        """Writes ``values``, shape ``(n,)``, to ``message``, shape ``(encoded_bytes(n),)``."""

    def decode(self, message: NDArray[np.uint8], values: NDArray[Any]) -> None:
        """Fills ``values``, shape ``(n,)``, from ``message``."""
