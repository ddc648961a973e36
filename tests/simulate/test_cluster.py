"""Bytes and seconds of a round on hosts with equally many workers, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from localsgd import codecs
from localsgd.simulate import Cluster, Link, Round, parse_network

HOST, WAN = Link("host", 1_000.0, 0.25), Link("wan", 100.0, 0.5)


def test_a_round_is_an_all_reduce_at_both_levels() -> None:
    """2 hosts of 4 workers, 16 numbers of 4 bytes.

    Of the 64 bytes a worker reads and writes what the others hold: 2 · 64 · 3/4 = 96. Of its piece
    of 8 bytes it sends to the other host the sum, and then the mean. On a link 512 bits take
    2 · 512 · 3/4 / 1,000 + 0.25 = 1.018 s, and 2 · 512 / 2 / 100 + 0.5 = 5.62 s.
    """
    found = Cluster(2, 4, HOST, WAN).round_of(16, "float32")
    assert (found.host_bytes, found.between_bytes) == (96, 16)
    assert found.seconds == pytest.approx(1.018 + 5.62, rel=1e-12)


def test_codecs_are_for_what_goes_between_hosts() -> None:
    """A piece of 8,192 numbers is 4,096 bytes of codes and two scales; memory moves it whole."""
    cluster = Cluster(3, 2, HOST, WAN)
    plain = cluster.round_of(6 * 8_192, "float32")
    packed = cluster.round_of(6 * 8_192, "float32", codecs.E3M0(4096))
    message = codecs.E3M0(4096).encoded_bytes(8_192)
    assert message == 4_096 + 8
    assert packed.between_bytes == 2 * 2 * message
    assert packed.host_bytes == plain.host_bytes
    within = cluster.host_round(6 * 8_192, "float32").seconds
    # 6 messages of all workers, in bits, over a host's link, 2 (1 - 1/3) times.
    assert packed.seconds - within == pytest.approx(
        2 * 8 * 6 * message * (2 / 3) / 100 + 0.5, rel=1e-12
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_bytes_are_those_of_the_dtype(dtype: str) -> None:
    size = {"float16": 2, "bfloat16": 2, "float64": 8}[dtype]
    assert Cluster(4, 1, None, WAN).round_of(8, dtype).between_bytes == 2 * 3 * 2 * size


def test_one_host_has_nothing_between_hosts_and_single_workers_nothing_within() -> None:
    one = Cluster(1, 4, HOST, None)
    assert one.round_of(16, "float32") == one.host_round(16, "float32")
    assert one.round_of(16, "float32", codecs.Int8()) == one.round_of(16, "float32")
    assert Cluster(4, 1, None, WAN).host_round(16, "float32") == Round(0, 0, 0.0)
    assert Cluster(1, 1, None, None).round_of(16, "float32") == Round(0, 0, 0.0)


@pytest.mark.parametrize(
    ("hosts", "network", "expected"),
    [
        ("2x4", "h=1kbit/s,1s; w=2kbit/s,2s", (2, 4, "h", "w")),
        ("2x1", "h=1kbit/s,1s; w=2kbit/s,2s", (2, 1, "h", "w")),
        ("2x1", "w=2kbit/s,2s", (2, 1, None, "w")),
        ("1x4", "h=1kbit/s,1s", (1, 4, "h", None)),
    ],
)
def test_levels_go_from_the_inside_out(
    hosts: str, network: str, expected: tuple[int, int, str | None, str | None]
) -> None:
    found = Cluster.parse(hosts, parse_network(network))
    names = [None if link is None else link.name for link in (found.host, found.between)]
    assert (found.hosts, found.workers, *names) == expected
    assert str(found) == hosts and found.size == found.hosts * found.workers


@pytest.mark.parametrize(
    ("hosts", "levels", "message"),
    [
        ("4+4", 2, r"must look like 4x8 \(hosts, workers of each host\), got '4\+4'"),
        ("0x4", 2, "must look like 4x8 .* got '0x4'"),
        ("2x2x2", 2, "must look like 4x8 .* got '2x2x2'"),
        ("2x4", 1, "two levels for hosts 2x4.* got 1: host"),
        ("2x1", 3, "two levels for hosts 2x1.* got 3: host, wan, host"),
    ],
)
def test_what_is_no_cluster_says_why(hosts: str, levels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster.parse(hosts, [HOST, WAN, HOST][:levels])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 2, None, WAN), "2x2 must have a link within a host, got none"),
        ((2, 2, HOST, None), "2x2 must have a link between hosts, got none"),
        ((0, 2, HOST, WAN), "hosts must be at least 1, got 0"),
        ((2, 0, HOST, WAN), "workers of a host must be at least 1, got 0"),
    ],
)
def test_a_level_with_several_ends_must_have_a_link(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(*arguments)
