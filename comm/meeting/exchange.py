"""What hosts tell each other as a collective begins: their ranks' headers, and what else fits in.

Every rank gets those of each other host from one rank there: rank l of a host hears from rank
l mod L of each host with L ranks. One small message each, in memory that is used again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..contract import Array, as_bytes
from ..topology import Topology
from ..waiting import CONTROL, Mail
from . import header
from .board import SMALL_BYTES


class Exchange:
    """One rank's messages to and from other hosts.

    Attributes:
        readers: the ranks of other hosts that hear from this one.
        offers: for every host what came with its headers in the last collective, as bytes; those
            of this rank's host are its own.
    """

    def __init__(self, mail: Mail, topology: Topology, rank: int) -> None:
        self._mail, self._hosts = mail, topology.hosts
        self._home = topology.host_of[rank]
        mine = self._hosts[self._home]
        me = mine.index(rank)
        self.readers: list[int] = []
        self._sources: list[tuple[int, int, Array]] = []
        for host, ranks in enumerate(self._hosts):
            if host != self._home:
                self.readers += [r for i, r in enumerate(ranks) if i % len(mine) == me]
                into = np.empty(header.BYTES * len(ranks) + SMALL_BYTES, np.uint8)
                self._sources.append((host, ranks[me % len(ranks)], into))
        self._out = np.empty(header.BYTES * len(mine) + SMALL_BYTES, np.uint8)
        self.offers: list[Array] = [self._out[:0]] * len(self._hosts)

    def trade(self, headers: Sequence[bytes], offer: Array | None) -> list[bytes]:
        """The headers of all ranks of the group, in rank order.

        Args:
            headers: those of this rank's host.
            offer: up to ``SMALL_BYTES`` bytes for the ranks of other hosts.
        """
        mail, end = self._mail, header.BYTES * len(headers)
        incoming = [
            (host, source, into, mail.receive_up_to(into, source, CONTROL))
            for host, source, into in self._sources
        ]
        self._out[:end] = np.frombuffer(b"".join(headers), np.uint8)
        offered = self._out[:0] if offer is None else as_bytes(offer)
        self._out[end : end + offered.size] = offered
        message = self._out[: end + offered.size]
        outgoing = [mail.send(message, dest, CONTROL, end) for dest in self.readers]
        self.offers[self._home] = offered
        found: list[bytes] = [b""] * sum(map(len, self._hosts))
        for rank, packed in zip(self._hosts[self._home], headers, strict=True):
            found[rank] = packed
        for host, source, into, arrival in incoming:
            ranks = self._hosts[host]
            end = header.BYTES * len(ranks)
            self.offers[host] = into[end : mail.wait_up_to(arrival, source, end)]
            table = into[:end].tobytes()
            for i, rank in enumerate(ranks):
                found[rank] = table[header.BYTES * i : header.BYTES * (i + 1)]
        for pieces, dest in zip(outgoing, self.readers, strict=True):
            mail.wait(pieces, dest)
        return found
