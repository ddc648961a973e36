"""What was measured: links are fitted to times, and a file gives back what was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localsgd.simulate import Level, Link, Machine

BYTES = (4_096, 1 << 20, 1 << 25)


def level(name: str, ends: int, bandwidth_bit_s: float, latency_s: float) -> Level:
    """As a link without any disturbance gives it."""
    link = Link(name, bandwidth_bit_s, latency_s)
    return Level(name, ends, BYTES, tuple(link.allreduce_s(8 * size, ends) for size in BYTES))


MACHINE = Machine(
    (2, 2), (level("host", 2, 80e9, 1e-5), level("between", 2, 1e9, 1e-3)), 1 << 25, 0.3, 1 << 33
)


@pytest.mark.parametrize(("bandwidth", "latency"), [(1e9, 1e-3), (80e9, 1e-5), (1e12, 0.05)])
@pytest.mark.parametrize("ends", [2, 3, 8])
def test_a_link_is_found_again_from_its_times(ends: int, bandwidth: float, latency: float) -> None:
    found = level("between", ends, bandwidth, latency).link
    assert found.bandwidth_bit_s == pytest.approx(bandwidth, rel=1e-6)
    assert found.latency_s == pytest.approx(latency, rel=1e-6)


def test_a_fit_is_of_relative_errors() -> None:
    """With a tenth more and less of two times that both are transfers, the mean of 1/1.1, 1/0.9.

    s minimises (1.1 t - s b)² / (1.1 t)² + …: s = Σ (b/t) / Σ (b/t)², with the latency at its
    bound of 0, which a line through the points would cross.
    """
    found = Level("between", 2, (1_000, 2_000), (0.9, 2.2)).link
    slopes = [8_000 / 0.9, 16_000 / 2.2]
    assert found.latency_s == 0
    assert found.bandwidth_bit_s == pytest.approx(
        sum(slope**2 for slope in slopes) / sum(slopes), rel=1e-12
    )


def test_times_that_fall_give_a_link_without_latency() -> None:
    found = Level("host", 4, (4_096, 1 << 20), (0.01, 0.005)).link
    assert found.latency_s == 0 and found.bandwidth_bit_s > 0


def test_levels_add_up_to_what_all_workers_take() -> None:
    """32 MiB: 2^28 bits at 80 Gbit/s and at 1 Gbit/s, with both latencies."""
    bits = 2.0**28
    assert MACHINE.predicted_s == pytest.approx(bits / 80e9 + 1e-5 + bits / 1e9 + 1e-3, rel=1e-6)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    MACHINE.save(path)
    assert Machine.load(path) == MACHINE
    written = json.loads(path.read_text())
    assert written["levels"][1]["bandwidth_bit_s"] == pytest.approx(1e9)
    assert written["levels"][1]["latency_s"] == pytest.approx(1e-3)


def test_its_cluster_is_what_was_measured_or_another_of_its_links() -> None:
    measured = MACHINE.cluster()
    assert str(measured) == "2x2"
    assert measured.between is not None
    assert measured.between.bandwidth_bit_s == pytest.approx(1e9)
    assert str(MACHINE.cluster("16x8")) == "16x8"


def test_a_cluster_that_was_not_measured_says_so() -> None:
    uneven = Machine((2, 1), MACHINE.levels, 1 << 25, 0.3, 1 << 33)
    with pytest.raises(ValueError, match=r"must be given .* uneven, got 2\+1"):
        uneven.cluster()
    one_host = Machine((2,), MACHINE.levels[:1], 1 << 25, 0.3, 1 << 33)
    with pytest.raises(ValueError, match="2x2 must have a link between hosts, got none"):
        one_host.cluster("2x2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be what localsgd bench writes, got JSONDecodeError"),
        ("[]", "must be what localsgd bench writes, got TypeError"),
        ("{}", "must be what localsgd bench writes, got KeyError: 'levels'"),
        (
            '{"levels": [{"name": "rack", "ends": 2, "payload_bytes": [1], "seconds": [1]}]}',
            "ValueError: a level must be host or between, got 'rack'",
        ),
    ],
)
def test_another_file_says_so(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Machine.load(path)
