"""What hosts tell each other as a collective begins: their ranks' headers, and what else fits in.

Every rank gets those of each other host from one rank there: rank l of a host hears from rank
l mod L of each host with L ranks. One small message each, in memory that is used again.
"""

from __future__ import annotations

import numpy as np

from ..contract import Array
from ..topology import Topology
from ..waiting import Mail
from . import header
from .board import SMALL_BYTES


class Exchange:
    """One rank's messages to and from other hosts.

    Attributes:
        readers: the ranks of other hosts that hear from this one.
        offers: for every host what came with its headers in the last collective, as bytes.
    """

    def __init__(self, mail: Mail, topology: Topology, rank: int) -> None:
        self._mail, self._home = mail, topology.host_of[rank]
        mine = topology.hosts[self._home]
        me = mine.index(rank)
        self.readers: list[int] = []
        self._sources: list[_Source] = []
        for host, ranks in enumerate(topology.hosts):
            if host != self._home:
                self.readers += [r for i, r in enumerate(ranks) if i % len(mine) == me]
                self._sources.append(_Source(host, ranks[me % len(ranks)], len(ranks)))
        self._out = np.empty(header.BYTES * len(mine) + SMALL_BYTES, np.uint8)
        self.offers: list[Array] = [self._out[:0]] * len(topology.hosts)

    def trade(self, table: bytes, offer: Array | None) -> list[bytes]:
        """For every host the headers of its ranks, one after the other.

        Args:
            table: those of this rank's host.
            offer: up to ``SMALL_BYTES`` bytes for the ranks of other hosts.
        """
        mail, end = self._mail, len(table)
        arrivals = [mail.receive_up_to(source.into, source.rank) for source in self._sources]
        self._out.data[:end] = table
        message = self._out[:end]
        self.offers[self._home] = self._out[end:end]
        if offer is not None:
            message = self._out[: end + offer.nbytes]
            message[end:] = offer.view(np.uint8)
            self.offers[self._home] = message[end:]
        outgoing = [mail.send_part(message, dest, end) for dest in self.readers]
        tables = [table] * len(self.offers)

        def missing() -> list[int]:
            pairs = zip(self._sources, arrivals, strict=True)
            return [source.rank for source, arrival in pairs if not arrival.done()]

        still = arrivals[::-1]

        def all_here() -> bool:
            while still and still[-1].done():
                still.pop()
            return not still

        mail.until(all_here, missing)
        for source, arrival in zip(self._sources, arrivals, strict=True):
            nbytes = mail.count_up_to(arrival, source.table_bytes)
            tables[source.host] = bytes(source.into.data[: source.table_bytes])
            self.offers[source.host] = source.into[source.table_bytes : nbytes]
        for sent, dest in zip(outgoing, self.readers, strict=True):
            mail.wait((sent,), dest)
        return tables


class _Source:
    """The rank that tells of a host, and where that goes."""

    def __init__(self, host: int, rank: int, ranks: int) -> None:
        self.host, self.rank, self.table_bytes = host, rank, header.BYTES * ranks
        self.into = np.empty(self.table_bytes + SMALL_BYTES, np.uint8)
