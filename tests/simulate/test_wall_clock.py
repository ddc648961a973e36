"""The idealised wall-clock model, by hand and in its limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from localsgd.simulate import NETWORKS, Link, wall_clock

# 100 parameters of 16 bits, 10 steps, 4 chips: an all-reduce of all at 240 bit/s takes 10 s.
SMALL: dict[str, Any] = {
    "parameters": 100,
    "tokens": 1_000,
    "batch_tokens": 100,
    "chips": 4,
    "flop_s": 1_500,
    "bandwidth_bit_s": 240.0,
    "latency_s": 1.0,
}


def test_data_parallel_by_hand() -> None:
    """6 · 100 · 1,000 / (4 · 1,500) = 100 s; (2 · 1,600 · 3/4 / 240 + 1) · 10 = 110 s."""
    found = wall_clock("data_parallel", **SMALL)
    assert (found.compute_s, found.communication_s, found.total_s) == (100, 110, 210)
    assert found.compute_utilization == 100 / 210


def test_one_replica_has_its_outer_steps_besides() -> None:
    """Every 5 steps one more: 110 · 6/5."""
    assert wall_clock("diloco", **SMALL, period=5).communication_s == pytest.approx(132)


def test_replicas_by_hand() -> None:
    """Within replicas (2 · 1,600 · (1 - 2/4) / 160 + 0.5) · 10 = 105 s; between them 110 / 5."""
    inner = Link("inner", 160.0, 0.5)
    found = wall_clock("diloco", **SMALL, replicas=2, period=5, inner=inner)
    assert found.communication_s == 127


def test_the_network_within_a_replica_is_the_papers_high_one() -> None:
    with_default = wall_clock("diloco", **SMALL, replicas=2, period=5)
    assert with_default == wall_clock(
        "diloco", **SMALL, replicas=2, period=5, inner=NETWORKS["high"]
    )


def test_a_replica_of_one_chip_has_no_bytes_within_but_the_latency() -> None:
    """1 - M/R is 0; the formula keeps e0 in every step."""
    inner = Link("inner", 160.0, 0.5)
    found = wall_clock("diloco", **SMALL, replicas=4, period=5, inner=inner)
    assert found.communication_s == 0.5 * 10 + 110 / 5


def test_limits() -> None:
    """Without a latency, of an infinite bandwidth nothing is left; of period 1e9 what is within."""
    free = {**SMALL, "bandwidth_bit_s": math.inf, "latency_s": 0.0}
    assert wall_clock("data_parallel", **free).compute_utilization == 1
    inner = Link("inner", 160.0, 0.5)
    rare = wall_clock("diloco", **SMALL, replicas=2, period=10**9, inner=inner)
    assert rare.communication_s == pytest.approx(105)


def test_arrays_give_arrays() -> None:
    bandwidths = np.array([[240.0, 480.0], [120.0, math.inf]])
    found = wall_clock("data_parallel", **{**SMALL, "bandwidth_bit_s": bandwidths})
    assert np.array_equal(found.communication_s, [[110, 60], [210, 10]])
    assert np.array_equal(found.total_s, [[210, 160], [310, 110]])
    assert np.array_equal(found.compute_utilization, 100 / np.array([[210, 160], [310, 110]]))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"method": "streaming"}, ValueError, "one of data_parallel, diloco, got 'streaming'"),
        ({"chips": 0}, ValueError, "chips must be at least 1, got 0"),
        ({"replicas": 3}, ValueError, "replicas must divide the 4 chips, got 3"),
        ({"period": 0}, ValueError, "period must be at least 1, got 0"),
        ({"tokens": 0}, ValueError, "tokens must be above 0, got 0"),
        ({"batch_tokens": -1}, ValueError, "batch_tokens must be at least 0, got -1"),
        ({"flop_s": 0}, ValueError, "flop_s must be above 0, got 0"),
        ({"latency_s": -1}, ValueError, "latency_s must be at least 0, got -1"),
        ({"bandwidth_bit_s": 0}, ValueError, "bandwidth_bit_s must be above 0, got 0"),
        ({"method": "data_parallel", "replicas": 2}, ValueError, "must be 1 .* got 2 and 1"),
        ({"method": "data_parallel", "period": 2}, ValueError, "must be 1 .* got 1 and 2"),
    ],
)
def test_bad_input_says_what_must_hold(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wall_clock(**{"method": "diloco", **SMALL, **wrong})
