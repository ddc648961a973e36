"""Which ranks share a host: the layout that decides the order of summation.

Hosts are numbered by their lowest rank and the ranks of a host are in rising order, so two
groups with the same layout compute the same bits wherever their ranks really run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

HostsLike: TypeAlias = "str | Sequence[int] | Sequence[Sequence[int]]"


@dataclass(frozen=True)
class Topology:
    """The ranks of each host.

    Attributes:
        hosts: for every host its ranks, rising; hosts by their lowest rank.
    """

    hosts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, hosts: Iterable[Sequence[int]]) -> Topology:
        """The topology with these ranks on each host, in any order."""
        ordered = sorted(tuple(sorted(ranks)) for ranks in hosts if ranks)
        topology = cls(tuple(ordered))
        if sorted(rank for ranks in ordered for rank in ranks) != list(range(topology.size)):
            raise ValueError(
                "hosts must hold every rank from 0 exactly once, "
                f"got {[list(ranks) for ranks in ordered]}"
            )
        return topology

    @classmethod
    def parse(cls, hosts: HostsLike, size: int) -> Topology:
        """The topology that a person wrote, for a group of ``size`` ranks.

        ``"2+1"`` or ``[2, 1]`` gives consecutive ranks to each host; ``"0,2/1,3"`` or
        ``[[0, 2], [1, 3]]`` names them.
        """
        try:
            listed = _read(hosts)
        except (ValueError, TypeError):
            raise ValueError(
                f"hosts must look like '2+1' (ranks per host) or '0,2/1,3' (their ranks), "
                f"got {hosts!r}"
            ) from None
        topology = cls.of(listed)
        if topology.size != size:
            raise ValueError(f"hosts must hold {size} ranks, got {hosts!r} with {topology.size}")
        return topology

    @classmethod
    def single_host(cls, size: int) -> Topology:
        return cls((tuple(range(size)),))

    @cached_property
    def size(self) -> int:
        return sum(len(ranks) for ranks in self.hosts)

    @cached_property
    def host_of(self) -> Mapping[int, int]:
        """The number of every rank's host."""
        return {rank: host for host, ranks in enumerate(self.hosts) for rank in ranks}

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """The ranks on the host of ``rank``, itself included."""
        return self.hosts[self.host_of[rank]]

    def shard(self, count: int, rank: int) -> slice:
        """The part of a buffer of ``count`` elements that a rank owns.

        Hosts get equal parts and the ranks of a host equal parts of theirs.
        """
        home = self.host_of[rank]
        part = piece(slice(0, count), home, len(self.hosts))
        ranks = self.hosts[home]
        return piece(part, ranks.index(rank), len(ranks))

    def held(self, count: int, rank: int) -> list[slice]:
        """The parts of a buffer of ``count`` elements that a rank combines, one for each host."""
        ranks = self.neighbours(rank)
        parts = (piece(slice(0, count), host, len(self.hosts)) for host in range(len(self.hosts)))
        return [piece(part, ranks.index(rank), len(ranks)) for part in parts]

    def restrict(self, ranks: Sequence[int]) -> Topology:
        """The topology of the group of these ranks, renumbered in the order given."""
        number = {rank: index for index, rank in enumerate(ranks)}
        return Topology.of([[number[r] for r in host if r in number] for host in self.hosts])

    def __str__(self) -> str:
        flat = [rank for ranks in self.hosts for rank in ranks]
        if flat == list(range(self.size)):
            return "+".join(str(len(ranks)) for ranks in self.hosts)
        return "/".join(",".join(str(rank) for rank in ranks) for ranks in self.hosts)


def piece(part: slice, index: int, pieces: int) -> slice:
    """The ``index``-th of so many nearly equal pieces of a part of a buffer."""
    length = part.stop - part.start
    begin = part.start + length * index // pieces
    return slice(begin, part.start + length * (index + 1) // pieces)


def _read(hosts: HostsLike) -> list[list[int]]:
    if isinstance(hosts, str):
        if "/" in hosts or "," in hosts:
            return [[int(rank) for rank in host.split(",")] for host in hosts.split("/")]
        return _consecutive([int(count) for count in hosts.split("+")])
    if all(isinstance(entry, int) for entry in hosts):
        return _consecutive([entry for entry in hosts if isinstance(entry, int)])
    return [list(entry) for entry in hosts if not isinstance(entry, int)]


def _consecutive(counts: Sequence[int]) -> list[list[int]]:
    if min(counts, default=0) < 1:
        raise ValueError(counts)
    ends = [sum(counts[: index + 1]) for index in range(len(counts))]
    return [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]
