"""What a rank says that it is about to do: the record compared before anything happens.

A header is 96 bytes. Everything but its weight must be equal on all ranks of a group.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..dtypes import DTYPES, OPS
from ..errors import MismatchError, name_ranks

VERBS = (
    "nothing yet",
    "an error of its own",
    "allocate",
    "allreduce",
    "reduce_scatter",
    "allgather",
    "broadcast",
    "gather",
    "barrier",
    "collect",
    "split",
    "map_again",
)
INVALID = "an error of its own"
_VERB_NUMBERS = {verb: number for number, verb in enumerate(VERBS)}
_OP_NUMBERS: dict[str, int] = {"": -1, **{op: number for number, op in enumerate(OPS)}}
_DTYPE_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}
_FORMAT = struct.Struct("<10q2d")
BYTES = _FORMAT.size
# Where the digest of the detail is.
DETAIL = slice(64, 72)
_UNWEIGHTED = -1.0
_NO_WEIGHT = struct.pack("<d", _UNWEIGHTED)


class Header(NamedTuple):
    """One rank's next collective.

    Attributes:
        verb: one of ``VERBS``.
        op, dtype, elements: of the buffer; empty and 0 where there is none.
        region: names the allocation that the buffer lies in; 0 for private memory.
        offset: of the buffer in its allocation, in bytes.
        root: of a broadcast.
        detail: what else must be equal, in words: a codec, the caller's label.
        has_update: whether this rank updates between sum and write-back.
        finite: whether results must be finite.
        mix: the share of its own value that each rank keeps.
        weight: this rank's weight; None for equal weights.
    """

    verb: str
    op: str = ""
    dtype: np.dtype[Any] | None = None
    elements: int = 0
    region: int = 0
    offset: int = 0
    root: int = 0
    detail: str = ""
    has_update: bool = False
    finite: bool = False
    mix: float = 0.0
    weight: float | None = None

    def pack(self, sequence: int) -> bytes:
        """The header's bytes, as collective number ``sequence`` of its group."""
        return _FORMAT.pack(
            _VERB_NUMBERS[self.verb],
            sequence,
            _OP_NUMBERS[self.op],
            -1 if self.dtype is None else _DTYPE_NUMBERS[self.dtype],
            self.elements,
            self.region,
            self.offset,
            self.root,
            _digest_of(self.detail),
            4 * self.finite + 2 * self.has_update + (self.weight is not None),
            self.mix,
            _UNWEIGHTED if self.weight is None else self.weight,
        )


class Prepared:
    """A header made for many calls: packed, but for the sequence and the detail.

    Attributes:
        detail: as in ``Header``; may be changed from call to call.
    """

    def __init__(self, call: Header) -> None:
        packed = call.pack(0)
        self.detail = self._packed_detail = call.detail
        self._verb, self._rest = packed[:8], packed[16:]

    def pack(self, sequence: int) -> bytes:
        """As ``Header.pack``."""
        if self.detail != self._packed_detail:
            detail = _digest_of(self.detail).to_bytes(8, "little")
            self._rest = self._rest[:48] + detail + self._rest[56:]
            self._packed_detail = self.detail
        return self._verb + sequence.to_bytes(8, "little") + self._rest


def digest(*values: object) -> int:
    """A positive number that names these values, the same on every rank."""
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=7).digest(), "big")


@lru_cache(maxsize=1024)
def _digest_of(detail: str) -> int:
    return digest(detail) if detail else 0


def has_weight(packed: bytes) -> bool:
    return not packed.endswith(_NO_WEIGHT)


def weight_of(packed: bytes) -> float:
    """The weight in a packed header, which has one."""
    return float(_FORMAT.unpack(packed)[-1])


def is_invalid(packed: bytes) -> bool:
    return bool(VERBS[_FORMAT.unpack(packed)[0]] == INVALID)


def rows(table: bytes) -> list[bytes]:
    """The packed headers that stand one after the other."""
    return [table[begin : begin + BYTES] for begin in range(0, len(table), BYTES)]


def all_same(headers: Sequence[bytes]) -> bool:
    """Whether all ranks are about to do the same: everything but the weight is equal."""
    first = headers[0][:-8]
    return all(packed.startswith(first) for packed in headers)


def describe(packed: bytes, detail: str = "") -> str:
    """A packed header in words; only the digest of its ``detail`` was packed."""
    verb, sequence, op, dtype, count, region, offset, root, _, flags, mix, weight = _FORMAT.unpack(
        packed
    )
    words = [VERBS[verb]]
    if dtype >= 0:
        words.append(f"of {count} {DTYPES[dtype].name}")
    if op >= 0:
        words.append(f"with op {OPS[op]!r}")
    if VERBS[verb] == "broadcast":
        words.append(f"from root {root}")
    if dtype >= 0 and VERBS[verb] not in ("allocate", "map_again"):
        words.append(
            f"in allocation {region:x} at byte {offset}" if region else "in private memory"
        )
    if flags & 2:
        words.append("with an update")
    if flags & 4:
        words.append("with finite results")
    if mix:
        words.append(f"with mix {mix}")
    if flags & 1:
        words.append(f"with weight {weight:g}")
    if detail:
        words.append(f"for {detail}")
    return f"{' '.join(words)} (collective {sequence})"


def name(packed: bytes, label: str = "") -> str:
    """The collective of a packed header in few words, with what it is for."""
    verb, sequence = _FORMAT.unpack(packed)[:2]
    words = f'{VERBS[verb]} "{label}"' if label else VERBS[verb]
    return f"{words} (collective {sequence})"


def raise_mismatch(headers: Sequence[bytes], details: Sequence[str]) -> NoReturn:
    """Says what the ranks were about to do, and which."""
    groups: dict[bytes, list[int]] = {}
    for rank, header in enumerate(headers):
        groups.setdefault(header[:-8], []).append(rank)
    parts = [
        f"{name_ranks(ranks)}: {describe(headers[ranks[0]], details[ranks[0]])}"
        for ranks in groups.values()
    ]
    raise MismatchError(f"all ranks must make the same call, got {'; '.join(parts)}")


def sequence_of(packed: bytes) -> int:
    """The number of the collective in a packed header."""
    return int(_FORMAT.unpack(packed)[1])
