"""Every codec: its bytes, what it decodes to, and that it hides nothing."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd.comm.codecs import (
    BFLOAT16,
    E3M0,
    FLOAT16,
    Codec,
    Int8,
    RandomK,
    Sign,
    TopK,
    TwoBit,
    check,
    float16_loops,
    keyed,
    largest,
    scaled_loops,
)
from oracle import same_bits


def chosen_of(count: int) -> int:
    """How many numbers ``TopK(5, 64)`` sends."""
    return count // 64 * 5 + -(-(count % 64) * 5 // 64)


# A codec and, for counts below, the bytes of its message as the formula has them.
CODECS: dict[str, tuple[Codec, Any]] = {
    "float16": (FLOAT16, lambda n: 2 * n),
    "bfloat16": (BFLOAT16, lambda n: 2 * n),
    "int8": (Int8(64), lambda n: n + 4 * -(-n // 64)),
    "int8, stochastic": (Int8(64, stochastic=True), lambda n: n + 4 * -(-n // 64)),
    "E3M0": (E3M0(64), lambda n: -(-n // 2) + 4 * -(-n // 64)),
    "2 bits": (TwoBit(64), lambda n: -(-n // 4) + 8 * -(-n // 64)),
    "sign": (Sign(64), lambda n: -(-n // 8) + 4 * -(-n // 64)),
    "top-k": (TopK(5, 64), lambda n: 6 * chosen_of(n)),
    "top-k, 2 bits": (
        TopK(5, 64, values=TwoBit(64)),
        lambda n: 2 * chosen_of(n) + -(-chosen_of(n) // 4) + 8 * -(-chosen_of(n) // 64),
    ),
    "top-k, float16": (TopK(5, 64, values=FLOAT16), lambda n: 4 * chosen_of(n)),
    "random-k": (RandomK(0.25), lambda n: 16 + 4 * min(n, max(1, round(n / 4)))),
}
COUNTS = [0, 1, 7, 64, 65, 1000, 20_001]
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def normal(count: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(dtype)


def sent(codec: Codec, values: np.ndarray) -> np.ndarray:
    message = np.empty(codec.encoded_bytes(values.size), np.uint8)
    codec.encode(values, message)
    found = np.empty_like(values)
    codec.decode(message, found)
    return found


def error(values: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(values.astype(float) - found.astype(float)).sum())


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_messages_have_the_bytes_of_the_formula_and_decode(
    name: str, count: int, dtype: Any
) -> None:
    """Nothing decoded is farther away than zero would be: codecs shrink the distance (form 12)."""
    codec, nbytes = CODECS[name]
    values = normal(count, dtype)
    assert codec.encoded_bytes(count) == nbytes(count)
    found = sent(codec, values)
    assert found.dtype == values.dtype
    assert error(values, found) <= error(values, np.zeros_like(values)) * (1 + 1e-6)
    assert same_bits(found, sent(codec, values))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [200, 20_000])
def test_what_is_not_finite_is_not_hidden(name: str, odd: float, count: int) -> None:
    """Wherever it stands in the block, the small ones included."""
    for place in (0, 70, count - 1):
        values = 1e-3 * normal(count)
        values[place] = odd
        assert not np.isfinite(sent(CODECS[name][0], values)).all()


@pytest.mark.parametrize("name", CODECS)
def test_zeros_and_the_smallest_numbers_are_no_trouble(name: str) -> None:
    tiny = np.float32(np.finfo(np.float32).smallest_subnormal)
    mixed = tiny * np.random.default_rng(0).integers(-180, 181, 130).astype(np.float32)
    for values in (np.zeros(130, np.float32), np.full(130, tiny, np.float32), mixed):
        for count in (130, 20_000):
            found = sent(CODECS[name][0], np.resize(values, count))
            assert np.isfinite(found).all()
            assert np.abs(found).max() <= 2 * np.abs(values).max()
            if not name.startswith("random"):
                assert (found * np.sign(np.resize(values, count)) >= 0).all()


def test_int8_is_within_half_a_step() -> None:
    """A step is the block's largest magnitude over 127; 1e-6 for the rounding of two divisions."""
    values = normal(6400)
    steps = np.abs(values.reshape(-1, 64)).max(axis=1) / 127
    far = np.abs(values - sent(Int8(64), values)).reshape(-1, 64).max(axis=1)
    assert (far <= steps / 2 * (1 + 1e-6)).all()


def test_stochastic_rounding_is_right_on_average() -> None:
    """Of n draws the mean of a step's remainder p is within 6 sqrt(p (1 - p) / n) of it."""
    values, draws = normal(64), 4000
    codec = Int8(64, stochastic=True, seed=3)
    found = np.mean([sent(keyed(codec, key), values) for key in range(draws)], axis=0)
    step = np.abs(values).max() / 127
    assert np.abs(found - values).max() <= 6 * step * 0.5 / np.sqrt(draws)
    assert not same_bits(sent(keyed(codec, 1), values), sent(keyed(codec, 2), values))


def test_e3m0_gives_the_nearest_power_of_two_or_zero() -> None:
    """Of a block whose largest is 8: borders at 3/4 of a power, and at half of the smallest."""
    values = [8, 6.1, 5.9, -4, 3.01, 2.99, 0.19, 0.186, 0.0626, 0.0624, -0.0, -0.0626]
    wanted = [8, 8, 4, -4, 4, 2, 0.25, 0.125, 0.125, 0, 0, -0.125]
    assert sent(E3M0(8 * 2), np.array(values, np.float32)).tolist() == wanted


def test_two_bits_are_the_sign_and_the_mean_of_the_large_or_of_the_others() -> None:
    """Mean square 110 / 8, so large is above 0.9816 sqrt(13.75) = 3.64: 8 and 6, whose mean is 7.

    The other six magnitudes sum to 6. Of the last, shorter block the border is 1.88: 3 is above.
    """
    values = np.array([1, -2, 0, 1, 8, -6, -0.0, 2, 3, -1, 1], np.float32)
    assert sent(TwoBit(8), values).tolist() == [1, -1, 1, 1, 7, -7, -1, 1, 3, -1, 1]


def test_two_bits_keep_what_is_beside_a_spike() -> None:
    values = np.array([1e30, *[-1, 1] * 4][:8], np.float32)
    assert same_bits(sent(TwoBit(8), values), values)


def test_two_bits_of_a_block_with_an_infinite_number_are_infinite() -> None:
    values = np.array([1, -2, np.inf, 3, 0, -4, 5, 6, 1], np.float32)
    assert sent(TwoBit(8), values).tolist() == [*np.copysign(np.inf, values[:8]), 1]


def test_two_bits_have_the_distortion_of_the_best_four_levels_for_normal_numbers() -> None:
    """Max's is 0.1175; border and levels are measured here, by block, so a little beside."""
    many = normal(1 << 16, seed=1)
    assert error(many, sent(TwoBit(256), many)) / np.square(many).sum() < 0.119


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("count", [2048, 2048 - 100])
def test_two_bits_contract_whatever_the_block(seed: int, count: int) -> None:
    """|x - C(x)|² <= (1 - 1/d) |x|², block by block: spikes of any number and size, and powers.

    1e-6 for levels in float32.
    """
    rng = np.random.default_rng(seed)
    values = rng.normal(size=count)
    spikes = rng.integers(0, count, rng.integers(1, 40))
    values[spikes] *= 10.0 ** rng.uniform(0, 18, spikes.size)
    values[rng.random(count) < rng.random()] = 0
    values = (np.sign(values) * np.abs(values) ** rng.uniform(0.1, 2)).astype(np.float32)
    found = sent(TwoBit(256), values)
    for start in range(0, count, 256):
        block = values[start : start + 256]
        kept = (1 - 1 / block.size) * np.square(block.astype(float)).sum()
        assert error(block, found[start : start + 256]) <= kept * (1 + 1e-6)


def test_the_sign_has_the_mean_magnitude_and_zero_is_positive() -> None:
    values = np.array([1, -2, 0, 3, -4, -0.0, 5, -6], np.float32)
    assert sent(Sign(8), values).tolist() == [m * 21 / 8 for m in (1, -1, 1, 1, -1, 1, 1, -1)]


def test_the_scaled_sign_contracts_as_its_closed_form() -> None:
    """Form 12: |x - C(x)|² = (1 - |x|_1² / (d |x|_2²)) |x|²."""
    values = normal(256)
    share = np.abs(values).sum() ** 2 / (256 * np.square(values).sum())
    expected = (1 - share) * np.square(values).sum()
    assert error(values, sent(Sign(256), values)) == pytest.approx(expected, rel=1e-5)


def test_top_k_keeps_the_largest_of_every_block() -> None:
    values = np.array([3, -1, 2, -4, 0, 1, 6, -5, 9, -8], np.float32)
    found = sent(TopK(2, 4), values)
    assert found.tolist() == [3, 0, 0, -4, 0, 0, 6, -5, 9, 0]
    many = normal(64 * 50)
    assert error(many, sent(TopK(5, 64), many)) <= (1 - 5 / 64) * np.square(many).sum()


def test_top_k_in_two_bits_is_two_bits_of_what_was_chosen() -> None:
    """Chosen are 3, -4, 6, -5 and 9; their mean square is 33.4, and above 5.67 are 6 and 9.

    Of 3, 4 and 5 the mean is 4, of the others 7.5.
    """
    values = np.array([3, -1, 2, -4, 0, 1, 6, -5, 9, -8], np.float32)
    found = sent(TopK(2, 4, values=TwoBit(8)), values)
    assert found.tolist() == [4, 0, 0, -4, 0, 0, 7.5, -4, 7.5, 0]


def test_top_k_hands_its_key_on() -> None:
    values, codec = normal(640), TopK(32, 64, values=Int8(64, stochastic=True))
    first, again, other = (sent(keyed(codec, key), values) for key in (1, 1, 2))
    assert same_bits(first, again) and not same_bits(first, other)


@pytest.mark.parametrize("values", [TopK(2, 4), RandomK(0.5), 2])
def test_top_k_takes_no_codec_that_leaves_numbers_out(values: Any) -> None:
    with pytest.raises(TypeError, match=r"values must be a codec that keeps all numbers, as TwoB"):
        TopK(2, 4, values=values)


@pytest.mark.parametrize("count", [8, 20_000])
def test_of_equal_magnitudes_the_first_are_sent(count: int) -> None:
    """In short buffers and, by the compiled loop, in long ones."""
    found = sent(TopK(2, 8), np.resize(np.array([1, 2, -2, 2, 0, 2, 1, 2], np.float32), count))
    assert found[:8].tolist() == [0, 2, -2, 0, 0, 0, 0, 0]
    assert same_bits(found, np.resize(found[:8], count))


def test_random_k_sends_a_choice_that_the_message_names() -> None:
    values = normal(400)
    codec = RandomK(0.25, seed=7)
    found = sent(codec, values)
    chosen = found != 0
    assert chosen.sum() == 100 and same_bits(found[chosen], values[chosen])
    other = sent(keyed(codec, 1), values)
    assert not same_bits(found, other)
    # Another codec of the kind reads it: the key is in the message.
    message = np.empty(codec.encoded_bytes(400), np.uint8)
    keyed(codec, 1).encode(values, message)
    read = np.empty_like(values)
    RandomK(0.25).decode(message, read)
    assert same_bits(read, other)


def test_an_unbiased_random_k_is_right_on_average() -> None:
    """Each number comes with probability 1/4 as 4 times itself: variance 3 x² / n."""
    values, draws = normal(40), 3000
    codec = RandomK(0.25, unbiased=True)
    found = np.mean([sent(keyed(codec, key), values) for key in range(draws)], axis=0)
    assert (np.abs(found - values) <= 6 * np.abs(values) * np.sqrt(3 / draws)).all()


@pytest.mark.parametrize("name", ["int8", "E3M0", "top-k", "top-k, float16"])
def test_compiled_loops_have_the_bits_of_numpy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(20_001)
    values[130:200] = 0
    values[300] = np.inf
    values[400] = np.nan
    values[500:600] = np.float32(np.finfo(np.float32).smallest_subnormal)
    codec = CODECS[name][0]
    messages = []
    for shortest in (1, 1 << 30):
        for module in (scaled_loops, largest, float16_loops):
            monkeypatch.setattr(module, "_LONG", shortest)
        message = np.empty(codec.encoded_bytes(values.size), np.uint8)
        codec.encode(values, message)
        found = np.empty_like(values)
        codec.decode(message, found)
        messages.append(message.tobytes() + found.tobytes())
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Int8(0), "block must be a multiple of 8 of at least 8, got 0"),
        (lambda: Sign(12), "block must be a multiple of 8 of at least 8, got 12"),
        (lambda: TopK(0), "k must be from 1 to the block, 4096, got 0"),
        (lambda: TopK(9, 8), "k must be from 1 to the block, 8, got 9"),
        (lambda: TopK(9, 70_000), "block must be from 1 to 65536, got 70000"),
        (lambda: RandomK(0.0), "share must be above 0 and at most 1, got 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_buffers_that_a_codec_cannot_carry_are_refused() -> None:
    for codec in (Int8(), E3M0(), TwoBit(), Sign(), TopK(2), RandomK(0.5)):
        with pytest.raises(TypeError, match="needs a floating-point buffer, got int64"):
            check(codec, np.dtype(np.int64), 100)
    with pytest.raises(
        ValueError, match="k must be at most the 100 numbers of the buffer, got 200"
    ):
        check(TopK(200), np.dtype(np.float32), 100)
    check(FLOAT16, np.dtype(np.int64), 100)
