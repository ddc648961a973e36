"""Where the largest magnitudes are: numpy and the compiled loop, against a sort."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd.comm.codecs import TopK, largest
from oracle import same_bits

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=40_000).astype(np.float32)
TINY = np.float32(np.finfo(np.float32).smallest_subnormal)
VALUES: dict[str, np.ndarray] = {
    "normal": NORMAL,
    "ties": RNG.integers(-3, 4, NORMAL.size).astype(np.float32),
    "zeros of both signs": np.where(NORMAL > 0, np.float32(0), np.float32(-0.0)),
    "all equal": np.full(NORMAL.size, -1.5, np.float32),
    "smallest": TINY * RNG.integers(-5, 6, NORMAL.size).astype(np.float32),
    "infinite and NaN": np.where(RNG.random(NORMAL.size) < 0.02, np.float32(np.inf), NORMAL),
    "any bits": RNG.integers(0, 1 << 32, NORMAL.size, np.uint32).view(np.float32),
    "rising": np.sort(np.abs(NORMAL)),
    "falling": -np.sort(np.abs(NORMAL))[::-1],
    "of many sizes": NORMAL * np.repeat(10.0 ** RNG.integers(-30, 30, 400), 100).astype("f4"),
}
VALUES["infinite and NaN"][::97] = -np.nan


@pytest.fixture(autouse=True, params=["always", "never"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is a loop: without numba both are numpy."""
    monkeypatch.setattr(largest, "_LONG", {"always": 1, "never": 1 << 60}[request.param])


def sorted_out(blocks: np.ndarray, k: int) -> np.ndarray:
    """The first k of a stable sort by falling bits of the magnitude; rising by place."""
    magnitudes = (blocks.view(np.uint32) & 0x7FFF_FFFF).astype(np.int64)
    return np.sort(np.argsort(-magnitudes, axis=1, kind="stable")[:, :k], axis=1)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    ("k", "block"), [(1, 8), (8, 8), (5, 64), (3, 13), (1, 1), (41, 4096), (4096, 4096), (9, 4001)]
)
def test_the_places_are_those_of_a_stable_sort(kind: str, k: int, block: int) -> None:
    values = VALUES[kind]
    blocks = values[: values.size // block * block].reshape(-1, block)
    found = largest.largest(blocks, k)
    assert found.dtype == np.uint16 and found.tolist() == sorted_out(blocks, k).tolist()


def test_no_rows_have_no_places() -> None:
    assert largest.largest(np.empty((0, 64), np.float32), 5).shape == (0, 5)


def test_places_reach_to_the_end_of_the_longest_block() -> None:
    values = np.zeros((1, 65_536), np.float32)
    values[0, [0, 65_535]] = 1, -2
    assert largest.largest(values, 2).tolist() == [[0, 65_535]]


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("count", [4096, 20_001, 32_768])
def test_top_k_sends_what_a_sort_finds(kind: str, count: int) -> None:
    """Where a part of a block is left over, too: of it the share of k, rounded up."""
    values, codec = VALUES[kind][:count], TopK(41)
    message = np.empty(codec.encoded_bytes(count), np.uint8)
    codec.encode(values, message)
    found = np.empty_like(values)
    codec.decode(message, found)
    wanted = np.zeros_like(values)
    for start in range(0, count, 4096):
        part = values[start : start + 4096]
        places = start + sorted_out(part[None], -(-41 * part.size // 4096))[0]
        wanted[places] = values[places]
    assert same_bits(found, wanted)
