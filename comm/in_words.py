"""Bytes, seconds and rates as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"), (1e15, "PB")
_TIMES = (
    *((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"), (86_400.0, "days")),
)


def size_in_words(count: float) -> str:
    """Bytes, by powers of 1,000.

    >>> size_in_words(2_500_000)
    '2.5 MB'
    """
    return _in_words(count, ((1.0, "B"), *_SIZES))


def seconds_in_words(seconds: float) -> str:
    """
    >>> seconds_in_words(5400)
    '1.5 h'
    """
    return _in_words(seconds, _TIMES)


def rate_in_words(bit_s: float) -> str:
    """Both, since both are in use.

    >>> rate_in_words(1e8)
    '12.5 MB/s (100 Mbit/s)'
    """
    bits = _in_words(bit_s, [(1.0, "bit"), *((size, f"{name[0]}bit") for size, name in _SIZES)])
    return f"{size_in_words(bit_s / 8)}/s ({bits}/s)"


def _in_words(value: float, units: Sequence[tuple[float, str]]) -> str:
    """With three digits, in the largest unit of which there is one."""
    if value == 0:
        return "0"
    size, name = units[0]
    for size_of, name_of in units:
        if value >= 0.9995 * size_of:
            size, name = size_of, name_of
    shown = f"{value / size:.3g}" if value / size < 999.5 else f"{value / size:,.0f}"
    return f"{shown} {name}"
