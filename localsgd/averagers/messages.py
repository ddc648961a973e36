"""What every worker sends of what it wants to move, as all of them read it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from localsgd.comm import Codec, NoWeight
from localsgd.comm.codecs import keyed_at
from localsgd.comm.contract import Array, Communicator


class Messages:
    """One message of every worker, at every worker; iterating decodes them in the order of ranks.

    Attributes:
        own: what this worker's message decodes to, shape ``(n,)``; zeros if it gives nothing.
        unsent: what it wanted to move besides, shape ``(n,)``.
    """

    def __init__(
        self,
        codec: Codec,
        wanted: Array,
        group: Communicator,
        weight: float | None,
        label: str,
        place: tuple[object, ...],
    ) -> None:
        """Collective.

        Args:
            wanted: what this worker wants to move, shape ``(n,)``.
            weight: what it weighs; who weighs 0 sends zeros.
            label: must be the same on all ranks.
            place: of random numbers, another one in every round and on every rank.

        Raises:
            MismatchError: on every rank, if labels differ.
            NoWeight: on every rank, if nobody weighs anything.
        """
        group.agree(label, "rounds")
        self._codec, self._like = keyed_at(codec, *place), wanted
        self._weights = _weights_of_all(group, weight)
        message = np.empty(self._codec.encoded_bytes(wanted.size), np.uint8)
        gives = self._weights[group.rank] > 0
        self._codec.encode(wanted if gives else np.zeros_like(wanted), message)
        self._messages = group.gather(message)
        self.own = np.empty_like(wanted)
        self._codec.decode(message, self.own)
        self.unsent = wanted - self.own

    @property
    def total(self) -> float:
        """What all workers weigh together."""
        return sum(self._weights)

    def __iter__(self) -> Iterator[tuple[float, Array]]:
        """What every worker weighs, and what it has sent, in an array that is used again."""
        sent = np.empty_like(self._like)
        for weight, message in zip(self._weights, self._messages, strict=True):
            self._codec.decode(message, sent)
            yield weight, sent


def _weights_of_all(group: Communicator, weight: float | None) -> list[float]:
    """What every worker weighs. Collective.

    Raises:
        ValueError: if only some have recorded samples.
        NoWeight: if nobody weighs anything.
    """
    found = group.collect(weight)
    if any((entry is None) != (weight is None) for entry in found):
        raise ValueError(f"samples must be recorded on all workers or on none, got weights {found}")
    weights = [1.0 if entry is None else float(entry) for entry in found]
    if not any(weights):
        raise NoWeight("some worker must weigh something, got a weight of 0 on every rank")
    return weights
