"""Where ranks run, and where they do once hosts are lost."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Placing:
    """How many ranks, and on which hosts.

    Attributes:
        ranks: how many.
        hosts: as in ``("a:2", "b")``, names with how many ranks each has room for, 1 where it does
            not say; empty for this host alone.
    """

    ranks: int
    hosts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, ranks: int, hosts: str | None) -> Placing:
        """What ``--hosts`` says, as in ``a:2,b:2``."""
        return cls(ranks, () if hosts is None else tuple(hosts.split(",")))

    @property
    def names(self) -> tuple[str, ...]:
        """Every host once."""
        return tuple(dict.fromkeys(_name(host) for host in self.hosts))

    @property
    def room(self) -> int:
        """How many ranks the hosts have room for."""
        return sum(int(host.partition(":")[2] or 1) for host in self.hosts)

    def without(self, lost: Collection[str]) -> Placing:
        """The same without some hosts: as many ranks as there were, where there is room for them.

        Where more ranks than there is room for were wanted, the hosts stay as crowded as they are.
        """
        left = Placing(self.ranks, tuple(host for host in self.hosts if _name(host) not in lost))
        if left.hosts == self.hosts:
            return self
        most = left.room * max(self.ranks, self.room) // self.room
        return Placing(min(self.ranks, most), left.hosts)

    def __str__(self) -> str:
        where = f" on {','.join(self.hosts)}" if self.hosts else ""
        return f"{self.ranks} rank{'s' if self.ranks > 1 else ''}{where}"


def _name(host: str) -> str:
    return host.partition(":")[0]
