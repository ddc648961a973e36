"""Numbers with their units, as a person reads them."""

from __future__ import annotations

import pytest

from localsgd.comm.in_words import rate_in_words, seconds_in_words, size_in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (1, "1 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (2_345_678_901, "2.35 GB"),
        (5e12, "5 TB"),
        (7e18, "7,000 PB"),
    ],
)
def test_sizes(count: float, words: str) -> None:
    assert size_in_words(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0"),
        (2e-9, "0.002 µs"),
        (3.2e-5, "32 µs"),
        (0.35, "350 ms"),
        (59, "59 s"),
        (90, "1.5 min"),
        (7_200, "2 h"),
        (259_200, "3 days"),
        (1e9, "11,574 days"),
    ],
)
def test_times(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words


def test_rates_are_in_bytes_and_bits() -> None:
    assert rate_in_words(400e9) == "50 GB/s (400 Gbit/s)"
    assert rate_in_words(800) == "100 B/s (800 bit/s)"
