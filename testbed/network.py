"""The wires: a bridge in the machine's namespace and, for every host, a pair of interfaces.

The rate is limited where packets leave: at the host's interface for what it sends and at the
bridge's port for what it receives. The queue of 4 MB is long enough that TCP is slowed down by the
rate and not by loss.
"""

from __future__ import annotations

from pathlib import Path

from pyroute2 import IPRoute

from testbed.launch import INTERFACE

_BRIDGE, _PREFIX = "switch", 16
_BURST_BYTES, _QUEUE_BYTES = 512 << 10, 4 << 20


def address(host: int) -> str:
    """The address of a host; private, and known in the testbed's own namespaces alone."""
    return f"10.77.{host // 250}.{host % 250 + 1}"


def make_bridge() -> None:
    """Makes the bridge in this process's network namespace."""
    _disable_ipv6()
    with IPRoute() as route:
        route.link("add", ifname=_BRIDGE, kind="bridge")
        _bring_up(route, _BRIDGE)


def make_host_end(host: int, machine: int, bytes_per_s: float | None) -> None:
    """Makes a host's interface in this process's network namespace, and its port in another.

    Args:
        machine: a process in the namespace of the bridge.
        bytes_per_s: the rate at which the host can send; None for no limit.
    """
    _disable_ipv6()
    with IPRoute() as route:
        _bring_up(route, "lo")
        peer = {"ifname": f"port{host}", "net_ns_pid": machine}
        route.link("add", ifname=INTERFACE, kind="veth", peer=peer)
        route.addr("add", index=_index(route, INTERFACE), address=address(host), prefixlen=_PREFIX)
        _limit(route, INTERFACE, bytes_per_s)
        _bring_up(route, INTERFACE)


def plug_in(host: int, bytes_per_s: float | None) -> None:
    """Attaches a host's port to the bridge."""
    name = f"port{host}"
    with IPRoute() as route:
        route.link("set", index=_index(route, name), master=_index(route, _BRIDGE))
        _limit(route, name, bytes_per_s)
        _bring_up(route, name)


def unplug(host: int) -> None:
    """Takes a host's port off the bridge: what it sends and is sent is lost without a word."""
    with IPRoute() as route:
        route.link("set", index=_index(route, f"port{host}"), master=0)


def _limit(route: IPRoute, name: str, bytes_per_s: float | None) -> None:
    if bytes_per_s is not None:
        route.tc(
            "add",
            "tbf",
            index=_index(route, name),
            rate=int(bytes_per_s),
            burst=_BURST_BYTES,
            limit=_QUEUE_BYTES,
        )


def _bring_up(route: IPRoute, name: str) -> None:
    route.link("set", index=_index(route, name), state="up")


def _index(route: IPRoute, name: str) -> int:
    return int(route.link_lookup(ifname=name)[0])


def _disable_ipv6() -> None:
    """Keeps the kernel from sending packets of its own accord."""
    path = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if path.exists():
        path.write_text("1")
