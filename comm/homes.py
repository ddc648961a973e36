"""On which host each rank is, by name, so that one that comes can be placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .topology import Topology


@dataclass(frozen=True)
class Homes:
    """The hosts of a group of all workers.

    Attributes:
        names: for every rank the name of its host.
        given: whether a person said who shares a host, and the names mean nothing elsewhere.
        free: the hosts on which ranks were lost that nobody has replaced.
    """

    names: tuple[str, ...]
    given: bool
    free: tuple[str, ...] = ()

    @classmethod
    def of(cls, topology: Topology) -> Homes:
        """Those of a layout that was given."""
        return cls(tuple(str(topology.host_of[rank]) for rank in range(topology.size)), True)

    @property
    def topology(self) -> Topology:
        """Who shares a host."""
        hosts: dict[str, list[int]] = {}
        for rank, name in enumerate(self.names):
            hosts.setdefault(name, []).append(rank)
        return Topology.of(hosts.values())

    def without_others(self, numbers: Sequence[int]) -> Homes:
        """Those of the ranks that are left."""
        lost = [name for rank, name in enumerate(self.names) if rank not in numbers]
        names = tuple(self.names[rank] for rank in numbers)
        return replace(self, names=names, free=(*self.free, *lost))

    def with_one(self, name: str) -> Homes:
        """Those of a group with one rank more, which says that it is on this host.

        Where hosts were given it takes the place of the first that was lost, or goes to the host
        with the fewest.
        """
        free = list(self.free)
        if self.given:
            name = free[0] if free else min(self.names, key=self.names.count)
        if name in free:
            free.remove(name)
        return replace(self, names=(*self.names, name), free=tuple(free))

    def with_one_apart(self) -> Homes:
        """Those with one more that shares memory with nobody."""
        return replace(self, names=(*self.names, f"apart {len(self.names)}"))
