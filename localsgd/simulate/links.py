"""What a network is to the models: of every level the bandwidth and the latency of its links.

A line names the levels from the inside out, as in ``host=50GB/s,1us; wan=100Mbit/s,50ms``. ``B`` is
bytes and ``bit`` bits; prefixes are powers of 1,000, and of 1,024 as in ``GiB/s``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from localsgd.checks import checked_number

_LEVEL = re.compile(r"([A-Za-z][\w-]*)\s*=\s*([^,]+?)\s*,\s*([^,]+?)")
_AMOUNT = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(\S+)", re.IGNORECASE)
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BITS = {
    **{f"{prefix}bit/s": size for prefix, size in _PREFIXES.items()},
    **{f"{prefix}B/s": 8 * size for prefix, size in _PREFIXES.items()},
    **{f"{p}iB/s": 8 * 1024.0**n for n, p in enumerate("KMGT", start=1)},
}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
EXAMPLE = "host=50GB/s,1us; wan=100Mbit/s,50ms"


@dataclass(frozen=True)
class Link:
    """One level of a network.

    Attributes:
        name: of the level.
        bandwidth_bit_s: what one end can send in a second, and receive meanwhile, in bits.
        latency_s: seconds that a collective takes beside its transfers.

    Raises:
        TypeError, ValueError: for a bandwidth that is not above 0, or a latency below 0.
    """

    name: str
    bandwidth_bit_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if checked_number(f"the bandwidth of {self.name} in bit/s", self.bandwidth_bit_s) == 0:
            raise ValueError(f"the bandwidth of {self.name} must be above 0 bit/s, got 0")
        checked_number(f"the latency of {self.name} in seconds", self.latency_s)

    def __str__(self) -> str:
        return f"{self.name}={self.bandwidth_bit_s:.6g}bit/s,{self.latency_s:.6g}s"

    def allreduce_s(self, payload_bits: float, ends: int) -> float:
        """Seconds that an all-reduce between ``ends`` ends of such links takes at least.

            2 payload (1 - 1/ends) / bandwidth + latency

        Nothing between fewer than two. Source: Scaling Laws for DiLoCo (arXiv 2503.09799).
        """
        if ends < 2:
            return 0.0
        return 2 * payload_bits * (1 - 1 / ends) / self.bandwidth_bit_s + self.latency_s


# Scaling Laws for DiLoCo (arXiv 2503.09799) compares these.
NETWORKS: Mapping[str, Link] = {
    "high": Link("high", 400e9, 1e-4),
    "medium": Link("medium", 100e9, 1e-3),
    "low": Link("low", 10e9, 1e-2),
}


def parse_network(text: str) -> tuple[Link, ...]:
    """The levels that a line names, from the inside out.

    >>> for link in parse_network("host=50GB/s,1us; wan=100Mbit/s,50ms"):
    ...     print(link)
    host=4e+11bit/s,1e-06s
    wan=1e+08bit/s,0.05s

    Raises:
        ValueError: if the line does not look like that, names a level twice, or a number is out of
            range.
    """
    levels = [level.strip() for level in text.strip().rstrip(";").split(";")]
    found = tuple(_parsed(level, text) for level in levels)
    names = [link.name for link in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"network must name every level once, got {twice!r} twice in {text!r}")
    return found


def _parsed(level: str, text: str) -> Link:
    parts = _LEVEL.fullmatch(level)
    if parts is None:
        raise ValueError(
            f"every level of a network must have a name, a bandwidth and a latency, as in "
            f"{EXAMPLE!r}, got {level!r} in {text!r}"
        )
    name, bandwidth, latency = parts.groups()
    return Link(
        name,
        _amount(f"the bandwidth of {name}", bandwidth, _BITS, "100Mbit/s or 50GB/s"),
        _amount(f"the latency of {name}", latency, _SECONDS, "1us or 50ms"),
    )


def _amount(what: str, text: str, units: Mapping[str, float], example: str) -> float:
    parts = _AMOUNT.fullmatch(text)
    if parts is None or parts[2] not in units:
        raise ValueError(
            f"{what} must be a number with one of the units {', '.join(units)}, as in {example}, "
            f"got {text!r}"
        )
    return float(parts[1]) * units[parts[2]]
