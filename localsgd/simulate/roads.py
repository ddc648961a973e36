"""When a message arrives: the links of hosts, which their workers share, and the memory of each.

A host's link sends one message after the other, and receives one after the other meanwhile:

    leaves  = max(sent, the sender's link is free)
    arrives = max(leaves + latency, the receiver's link is free) + bytes / bandwidth

Messages within a host take its memory's latency and bandwidth, without waiting for one another.
"""

from __future__ import annotations

from collections.abc import Sequence

from localsgd.comm import Topology
from localsgd.simulate.links import Link


class Roads:
    """The links of one simulation.

    Attributes:
        sent_bytes: that hosts have sent to each other so far, headers and all.
    """

    def __init__(self, topology: Topology, network: Sequence[Link]) -> None:
        """
        Args:
            network: the level within hosts and that between them; or the one that is used.

        Raises:
            ValueError: if a level is missing, or one is too much.
        """
        hosts = len(topology.hosts)
        shared, apart = topology.size > hosts, hosts > 1
        if len(network) == 2:
            self._host, self._between = network
        elif len(network) == 1 and not (shared and apart):
            self._host = self._between = network[0]
        else:
            names = ", ".join(link.name for link in network) or "none"
            raise ValueError(
                f"network must have two levels for hosts {topology}, one within hosts and one "
                f"between them, got {len(network)}: {names}"
            )
        self._host_of = topology.host_of
        self._sends_from = [0.0] * hosts
        self._receives_from = [0.0] * hosts
        self.sent_bytes = 0

    def arrival_s(self, now: float, nbytes: int, sender: int, receiver: int) -> float:
        """When what a worker sends now arrives; to be asked once for every message."""
        source, target = self._host_of[sender], self._host_of[receiver]
        if source == target:
            if sender == receiver:
                return now
            link = self._host
            return now + link.latency_s + 8 * nbytes / link.bandwidth_bit_s
        link = self._between
        self.sent_bytes += nbytes
        takes_s = 8 * nbytes / link.bandwidth_bit_s
        leaves = max(now, self._sends_from[source])
        self._sends_from[source] = leaves + takes_s
        arrives = max(leaves + link.latency_s, self._receives_from[target]) + takes_s
        self._receives_from[target] = arrives
        return arrives

    def memory_s(self, nbytes: int) -> float:
        """How long a worker takes to read and write so much of others' memory on its host."""
        if nbytes == 0:
            return 0.0
        return self._host.latency_s + 8 * nbytes / self._host.bandwidth_bit_s
