"""What the benchmarks between hosts have in common: the model, the layouts and the limit."""

from __future__ import annotations

from collections.abc import Sequence

COUNT, PIECES = 4_000_000, 25
RATE_GBIT = 1.0
LAYOUTS: dict[str, Sequence[int]] = {
    "2x2": (2, 2),
    "4x1": (1, 1, 1, 1),
    "4x2": (2, 2, 2, 2),
    "3+2+1": (3, 2, 1),
}
LINK = "the link's limit"
SETTING = f"{COUNT / 1e6} M float32, {RATE_GBIT:g} Gbit/s per host; layouts are hosts x ranks."


def link_limit_s(hosts: int) -> float:
    """Seconds for what each of M hosts must send and receive: 2 (M-1)/M of the bytes."""
    return 2 * (hosts - 1) / hosts * 4 * COUNT / (RATE_GBIT * 1e9 / 8)
