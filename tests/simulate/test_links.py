"""Networks as a line of text, and what an all-reduce costs on one link."""

from __future__ import annotations

import math

import pytest

from localsgd.simulate import NETWORKS, Link, parse_network


def test_a_line_names_levels_from_the_inside_out() -> None:
    """50 GB/s are 400 Gbit/s."""
    host, wan = parse_network("host=50GB/s,1us; wan=100Mbit/s,50ms")
    assert host == Link("host", 400e9, 1e-6)
    assert wan == Link("wan", 100e6, 0.05)


@pytest.mark.parametrize(
    ("bandwidth", "bit_s"),
    [
        ("1bit/s", 1),
        ("2.5kbit/s", 2500),
        ("3 Gbit/s", 3e9),
        ("1e3Mbit/s", 1e9),
        (".5Tbit/s", 5e11),
        ("1B/s", 8),
        ("1kB/s", 8e3),
        ("1TB/s", 8e12),
        ("1KiB/s", 8 * 1024),
        ("1GiB/s", 8 * 2**30),
    ],
)
def test_bandwidths_have_units_of_bits_and_bytes(bandwidth: str, bit_s: float) -> None:
    assert parse_network(f"x={bandwidth},0s")[0].bandwidth_bit_s == bit_s


@pytest.mark.parametrize(
    ("latency", "seconds"), [("2ns", 2e-9), ("2us", 2e-6), ("2µs", 2e-6), ("2ms", 2e-3), ("2s", 2)]
)
def test_latencies_have_units(latency: str, seconds: float) -> None:
    assert parse_network(f"x=1bit/s,{latency}")[0].latency_s == seconds


def test_what_a_link_prints_is_read_again() -> None:
    links = parse_network("host=50GB/s,1us; a-b_2=100Mbit/s,50ms;")
    assert parse_network("; ".join(map(str, links))) == links


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a name, a bandwidth and a latency.*got ''"),
        ("host=50GB/s", "a name, a bandwidth and a latency.*got 'host=50GB/s'"),
        ("50GB/s,1us", "a name, a bandwidth and a latency.*got '50GB/s,1us'"),
        ("a=1B/s,1s;;b=1B/s,1s", "a name, a bandwidth and a latency.*got ''"),
        ("host=50GB,1us", "the bandwidth of host .* units .*bit/s.* got '50GB'"),
        ("host=50gb/s,1us", "the bandwidth of host .* got '50gb/s'"),
        ("host=50GB/s,1m", "the latency of host .* units ns, us.* got '1m'"),
        ("host=-1GB/s,1us", "the bandwidth of host .* got '-1GB/s'"),
        ("host=0GB/s,1us", "the bandwidth of host must be above 0 bit/s, got 0"),
        ("a=1B/s,1s; a=2B/s,1s", "every level once, got 'a' twice"),
    ],
)
def test_a_line_that_names_none_says_what_is_wrong(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_network(line)


def test_a_link_has_a_latency_of_at_least_0() -> None:
    with pytest.raises(ValueError, match="the latency of x in seconds must be at least 0, got -1"):
        Link("x", 1.0, -1.0)


def test_an_all_reduce_takes_both_ways_of_a_ring_and_the_latency() -> None:
    """2 · 800 bits · 3/4 at 100 bit/s are 12 s, and half a second."""
    link = Link("x", 100.0, 0.5)
    assert link.allreduce_s(800, 4) == 12.5
    assert link.allreduce_s(800, 1) == 0
    assert math.isclose(link.allreduce_s(800, 10**9), 16.5, rel_tol=1e-6)


def test_the_papers_networks() -> None:
    found = {name: (link.bandwidth_bit_s, link.latency_s) for name, link in NETWORKS.items()}
    assert found == {"high": (400e9, 1e-4), "medium": (100e9, 1e-3), "low": (10e9, 1e-2)}
