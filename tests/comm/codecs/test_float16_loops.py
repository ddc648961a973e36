"""Float16 by the compiled loops has numpy's bits, with numpy's own conversion as the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd.comm.codecs import FLOAT16, float16_loops

EVERY_CODE = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.fixture(autouse=True, params=["for long buffers", "always", "never"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are loops: without numba all three are numpy."""
    shortest = {"for long buffers": float16_loops._LONG, "always": 1, "never": 1 << 60}
    monkeypatch.setattr(float16_loops, "_LONG", shortest[request.param])


def quiet(values: np.ndarray) -> bytes:
    """The bits, with every NaN quiet: whether a cast makes it so is up to the processor."""
    bits = values.view(f"u{values.itemsize}").copy()
    bits[np.isnan(values)] |= bits.dtype.type(1 << np.finfo(values.dtype).nmant - 1)
    return bits.tobytes()


def check_encoded(values: np.ndarray) -> None:
    message = np.empty(FLOAT16.encoded_bytes(values.size), np.uint8)
    FLOAT16.encode(values, message)
    with np.errstate(all="ignore"):
        wanted = values.astype(np.float16)
    assert quiet(message.view(np.float16)) == quiet(wanted)


def floats(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)


def test_every_code_is_decoded_as_by_numpy() -> None:
    found = np.empty(EVERY_CODE.size, np.float32)
    FLOAT16.decode(EVERY_CODE.view(np.uint8), found)
    assert quiet(found) == quiet(EVERY_CODE.astype(np.float32))


def test_every_code_goes_to_and_fro() -> None:
    check_encoded(EVERY_CODE.astype(np.float32))


def test_halves_go_to_the_even_one_and_their_neighbours_to_the_nearer() -> None:
    """Between each float16 and the next, and for both signs; the subnormal ones are among them.

    Beyond the largest, 65,504, the half is at 65,520: from there on it is infinity.
    """
    rising = np.append(EVERY_CODE[:0x7C00].astype(np.float64), 65_536)
    halves = ((rising[1:] + rising[:-1]) / 2).astype(np.float32).view(np.uint32)
    for beside in (halves - 1, halves, halves + 1):
        check_encoded(floats(beside))
        check_encoded(floats(beside | 1 << 31))


def test_numbers_of_all_sizes_are_encoded_as_by_numpy() -> None:
    """Every exponent, and random digits: zeros, subnormal, too large, infinite and NaN."""
    check_encoded(floats(np.random.default_rng(0).integers(0, 1 << 32, 1 << 20)))
    exponents = np.arange(1 << 9) << 23
    ends = np.concatenate([exponents, exponents + 1, exponents + 0x7F_FFFF, exponents + 0x40_0000])
    check_encoded(floats(np.resize(ends, 20_001)))


@pytest.mark.parametrize("count", [0, 1, 7, 2047, 2048, 2049, 20_001])
def test_buffers_of_every_length_are_decoded_to_their_end(count: int) -> None:
    codes = np.random.default_rng(1).integers(0, 1 << 16, count, np.uint16).view(np.float16)
    found = np.empty(count, np.float32)
    FLOAT16.decode(codes.view(np.uint8), found)
    assert quiet(found) == quiet(codes.astype(np.float32))


def test_what_is_too_large_becomes_infinite_without_a_warning() -> None:
    for dtype in (np.float32, np.float64):
        values = np.full(20_000, -1e6, dtype)
        message = np.empty(FLOAT16.encoded_bytes(values.size), np.uint8)
        FLOAT16.encode(values, message)
        assert (message.view(np.float16) == -np.inf).all()
