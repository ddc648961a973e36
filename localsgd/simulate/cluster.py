"""Which workers share a host, and what lies between them: what one round costs there.

Every host has equally many workers. A round moves what the library's rounds move: the ranks of a
host read and write each other's memory, then every rank exchanges its part with the other hosts.
The time is that of an all-reduce at each of the two levels, one after the other; encoding and
decoding are taken to cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from localsgd.checks import checked_count
from localsgd.comm import Codec
from localsgd.simulate.links import Link


@dataclass(frozen=True)
class Round:
    """What one round costs.

    Attributes:
        host_bytes: that a worker reads and writes of others' memory on its host.
        between_bytes: that a worker sends to other hosts, and receives as many.
        seconds: from its begin to its end, if nothing else goes on.
    """

    host_bytes: int
    between_bytes: int
    seconds: float


@dataclass(frozen=True)
class Cluster:
    """Hosts with equally many workers.

    Attributes:
        hosts: how many.
        workers: on each of them.
        host: the memory within a host; None only if ``workers`` is 1.
        between: the link of a host to others, which its workers share; None only if ``hosts``
            is 1.

    Raises:
        TypeError, ValueError: for a count below 1, or a level without its link.
    """

    hosts: int
    workers: int
    host: Link | None
    between: Link | None

    def __post_init__(self) -> None:
        checked_count("hosts", self.hosts, at_least=1)
        checked_count("workers of a host", self.workers, at_least=1)
        if self.workers > 1 and self.host is None:
            raise ValueError(f"{self} must have a link within a host, got none")
        if self.hosts > 1 and self.between is None:
            raise ValueError(f"{self} must have a link between hosts, got none")

    @classmethod
    def parse(cls, hosts: str, network: Sequence[Link]) -> Cluster:
        """The cluster ``"4x8"`` (hosts, workers of each) with the levels of a network.

        Args:
            hosts: hosts times workers, as in ``"4x8"``.
            network: within a host, then between hosts; or the one of them that is used.

        Raises:
            ValueError: if ``hosts`` looks otherwise, or the levels are not those that are used.
        """
        count, workers = counts_of(hosts)
        if len(network) == 2:
            return cls(count, workers, network[0], network[1])
        if len(network) == 1 and (count == 1 or workers == 1):
            if count == 1:
                return cls(count, workers, network[0], None)
            return cls(count, workers, None, network[0])
        names = ", ".join(link.name for link in network) or "none"
        raise ValueError(
            f"network must have two levels for hosts {hosts}, one within hosts and one between "
            f"them, got {len(network)}: {names}"
        )

    def __str__(self) -> str:
        return f"{self.hosts}x{self.workers}"

    @property
    def size(self) -> int:
        """How many workers there are."""
        return self.hosts * self.workers

    def round_of(self, parameters: int, dtype: DTypeLike, codec: Codec | None = None) -> Round:
        """A round of all workers. Codecs are for what goes between hosts."""
        itemsize = np.dtype(dtype).itemsize
        within = self.host_round(parameters, dtype)
        if self.between is None or self.hosts == 1:
            return within
        piece = -(-parameters // self.size)
        message = piece * itemsize if codec is None else codec.encoded_bytes(piece)
        seconds = self.between.allreduce_s(8 * message * self.size, self.hosts)
        return Round(within.host_bytes, 2 * (self.hosts - 1) * message, within.seconds + seconds)

    def host_round(self, parameters: int, dtype: DTypeLike) -> Round:
        """A round of every host's workers among themselves."""
        if self.host is None or self.workers == 1:
            return Round(0, 0, 0.0)
        itemsize = np.dtype(dtype).itemsize
        moved = 2 * (self.workers - 1) * -(-parameters // self.workers) * itemsize
        return Round(moved, 0, self.host.allreduce_s(8 * parameters * itemsize, self.workers))


def counts_of(hosts: str) -> tuple[int, int]:
    """How many hosts, and workers of each, ``"4x8"`` means.

    Raises:
        ValueError: if it looks otherwise.
    """
    parts = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", hosts.strip())
    if parts is None:
        raise ValueError(f"hosts must look like 4x8 (hosts, workers of each host), got {hosts!r}")
    return int(parts[1]), int(parts[2])
