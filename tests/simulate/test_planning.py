"""The plan: utilisation and time by hand, under both models, and the rule that recommends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd.simulate import (
    Candidate,
    Cluster,
    Link,
    Model,
    Plan,
    Row,
    Workload,
    compute_utilization,
    plan,
    recommend,
    sweep,
)

# 1,000 float32 numbers are 32,000 bits: a round takes 2 · 32,000 / 2 / 64,000 = 0.5 s within a
# host, and 2 · 32,000 / 2 / 3,200 + 2 = 12 s between hosts.
HOST, WAN = Link("host", 64_000.0, 0.0), Link("wan", 3_200.0, 2.0)
JOB = Workload(Cluster(2, 2, HOST, WAN), 1_000, 2.0, 10_000, layers=4)


def by_name(made: Plan) -> dict[str, Row]:
    return {str(row.candidate): row for row in made.rows}


def test_rounds_that_nothing_hides_are_added_to_their_steps() -> None:
    """Steps of 2 s: a round of 12.5 s every 4th makes 2 / (2 + 12.5 / 4)."""
    found = by_name(plan(JOB))
    assert found["synchronous (gradients, every step)"].utilization == pytest.approx(2 / 14.5)
    local = found["local SGD (period 4)"]
    assert local.utilization == pytest.approx(2 / (2 + 12.5 / 4), rel=1e-12)
    assert local.wall_clock_s == pytest.approx(10_000 * (2 + 12.5 / 4), rel=1e-12)
    # 2,500 rounds: 4,000 bytes read and written in halves; pieces of 1,000 bytes sent twice.
    assert (local.host_bytes, local.between_bytes) == (2_500 * 4_000, 2_500 * 2_000)


def test_hosts_have_rounds_of_their_own_in_between() -> None:
    """In 16 steps one round of all, 12.5 s, and 15 of hosts, 0.5 s each."""
    found = by_name(plan(JOB))["hierarchical (host 1, all 16)"]
    assert found.utilization == pytest.approx(32 / (32 + 12.5 + 15 * 0.5), rel=1e-12)
    assert found.between_bytes == 625 * 2_000
    assert found.host_bytes == 10_000 * 4_000


def test_a_delay_hides_as_many_steps() -> None:
    """4 steps of 2 s hide 8 s of 12.5; 16 hide all. Of 4 fragments each takes 0.125 + 2.5 + 2 s."""
    found = by_name(plan(JOB))
    overlapped = found["overlapped (period 16, delay 4)"]
    assert overlapped.utilization == pytest.approx(32 / (32 + 4.5), rel=1e-12)
    assert found["overlapped (period 64, delay 16)"].utilization == 1
    assert found["streaming (period 100, 4 fragments, delay 5)"].utilization == 1
    slow = Workload(Cluster(2, 2, HOST, Link("wan", 320.0, 2.0)), 1_000, 2.0, 10_000)
    streaming = by_name(plan(slow))["streaming (period 100, 4 fragments, delay 5)"]
    # Pieces of 63 numbers make 8,064 bits, at 320 bit/s 25.2 s; with 2 s and 0.125 s, less 10 s,
    # every 25 steps of 50 s.
    assert streaming.utilization == pytest.approx(50 / (50 + 27.325 - 10), rel=1e-12)


@pytest.mark.parametrize("method", ["local SGD (period 4)", "overlapped (period 16, delay 4)"])
def test_by_layers_the_link_is_as_fast_as_the_all_reduce(method: str) -> None:
    """12.5 s for all 4 layers."""
    row = by_name(plan(JOB, model="per-layer"))[method]
    assert row.utilization == pytest.approx(
        compute_utilization(
            "diloco",
            layers=4,
            parameters=1_000,
            step_time_s=2.0,
            bandwidth_bit_s=16_000 / 12.5,
            period=row.candidate.period,
            delay=row.candidate.delay,
        ),
        rel=1e-12,
    )


def test_by_layers_lost_time_of_hosts_rounds_is_added() -> None:
    rows = by_name(plan(JOB, model="per-layer"))
    of_all = 1 / rows["local SGD (period 16)"].utilization - 1
    of_hosts = 1 / compute_utilization(
        "data_parallel",
        layers=4,
        parameters=1_000,
        step_time_s=2.0,
        bandwidth_bit_s=16_000 / 0.5,
    )
    found = rows["hierarchical (host 1, all 16)"].utilization
    assert 1 / found == pytest.approx(of_all + of_hosts, rel=1e-12)


@pytest.mark.parametrize("model", ["wall-clock", "per-layer"])
def test_one_worker_has_nothing_to_wait_for(model: Model) -> None:
    made = plan(Workload(Cluster(1, 1, None, None), 1_000, 1.0, 10), model=model)
    assert {row.utilization for row in made.rows} == {1.0}
    assert {row.host_bytes + row.between_bytes for row in made.rows} == {0}
    assert made.recommended.candidate.exact


def row(name: str, utilization: float, *, exact: bool = False) -> Row:
    candidate = Candidate(name, "settings", "line", period=1, exact=exact)
    return Row(candidate, utilization, 1.0, 0, 0)


def test_what_is_exact_is_taken_if_it_reaches_the_target() -> None:
    rows = [row("a", 0.9, exact=True), row("b", 0.99)]
    taken, reason = recommend(rows, 0.9)
    assert taken is rows[0]
    assert reason == "a (settings): its compute utilisation of 0.90 reaches 0.9, and it is exact."


def test_else_the_least_drastic_that_does() -> None:
    rows = [row("a", 0.5, exact=True), row("b", 0.4), row("c", 0.91), row("d", 1.0)]
    taken, reason = recommend(rows, 0.9)
    assert taken is rows[2]
    assert reason == (
        "c (settings): its compute utilisation of 0.91 reaches 0.9, which no less drastic method "
        "does; the one before it, b (settings), has 0.40."
    )


def test_else_the_one_with_the_most() -> None:
    rows = [row("a", 0.5, exact=True), row("b", 0.7), row("c", 0.6)]
    taken, reason = recommend(rows, 0.9)
    assert taken is rows[1]
    assert reason == (
        "b (settings): no method's compute utilisation reaches 0.9, and it has the most, 0.70."
    )


@pytest.mark.parametrize("model", ["wall-clock", "per-layer"])
def test_a_faster_link_never_asks_for_a_more_drastic_method(model: Model) -> None:
    places = []
    for bandwidth in np.geomspace(1e6, 1e13, 15):
        job = Workload(
            Cluster(4, 8, Link("host", 400e9, 1e-6), Link("wan", bandwidth, 1e-4)), 10**8, 1, 9
        )
        made = plan(job, model=model)
        if made.recommended.utilization >= 0.9:
            places.append(made.rows.index(made.recommended))
    assert places == sorted(places, reverse=True) and places[-1] == 0 and places[0] > 5


@pytest.mark.parametrize("model", ["wall-clock", "per-layer"])
def test_a_sweep_is_the_plan_of_every_bandwidth(model: Model) -> None:
    bandwidths = np.array([320.0, 3_200.0, 1e6])
    found = sweep(JOB, bandwidths, model=model)
    for index, bandwidth in enumerate(bandwidths):
        cluster = Cluster(2, 2, HOST, Link("wan", float(bandwidth), 2.0))
        job = Workload(cluster, 1_000, 2.0, 10_000, layers=4)
        for planned in plan(job, model=model).rows:
            assert found[planned.candidate][index] == pytest.approx(planned.utilization, rel=1e-12)


def test_on_one_host_its_memory_is_swept() -> None:
    job = Workload(Cluster(1, 4, HOST, None), 1_000, 2.0, 10_000)
    swept = sweep(job, np.array([HOST.bandwidth_bit_s, 1e30]), model="wall-clock")
    assert [values[0] for values in swept.values()] == [row.utilization for row in plan(job).rows]
    assert {values[1] for values in swept.values()} == {1.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parameters": 0}, "parameters must be at least 1, got 0"),
        ({"step_time_s": 0.0}, "step_time_s must be above 0, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"dtype": "int32"}, "dtype must be one of float16, bfloat16, float32.* got 'int32'"),
        ({"dtype": "foo"}, "dtype must be one of float16, bfloat16, float32.* got 'foo'"),
    ],
)
def test_a_job_says_what_must_hold(wrong: dict[str, Any], message: str) -> None:
    good = {"cluster": JOB.cluster, "parameters": 1, "step_time_s": 1.0, "steps": 1}
    with pytest.raises(ValueError, match=message):
        Workload(**{**good, **wrong})


def test_a_plan_says_what_must_hold() -> None:
    with pytest.raises(ValueError, match="one of wall-clock, per-layer, got 'exact'"):
        plan(JOB, model="exact")  # type: ignore[arg-type]  # what a user might write
    with pytest.raises(ValueError, match=r"target must be at most 1, got 1\.5"):
        plan(JOB, target=1.5)
