"""AdamW against steps worked out by hand, and against the formula at every block edge."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import Arena, optim, solo


def test_the_first_step_has_the_length_of_the_learning_rate() -> None:
    """After bias correction m = g and √v = |g|: the step is lr·sign(g), after decay by 1/4·1/2."""
    arena = Arena({"x": np.array([8.0, 8.0])}, solo())
    adamw = optim.AdamW(arena, lr=0.25, eps=0.0, weight_decay=0.5)
    arena.grad["x"] += [3.0, -0.01]
    adamw.step()
    np.testing.assert_allclose(arena["x"], [6.75, 7.25], rtol=1e-14)


def test_the_second_step_weighs_both_gradients_by_their_bias_corrections() -> None:
    """betas 1/2 and 3/4, gradients 4 and 2, no decay, lr 1, eps 1.

    Step 1: m = 2, v = 4; m/(1-1/2) = 4, √(4/(1/4)) = 4; x = 8 - 4/5 = 7.2.
    Step 2: m = 2, v = 3 + 1 = 4; m/(3/4) = 8/3, √(4/(7/16)) = 8/√7; x = 7.2 - (8/3)/(8/√7 + 1).
    """
    arena = Arena({"x": np.array([8.0])}, solo())
    adamw = optim.AdamW(arena, lr=1.0, betas=(0.5, 0.75), eps=1.0, weight_decay=0.0)
    for grad in (4.0, 2.0):
        arena.grad["x"] += grad
        adamw.step()
    np.testing.assert_allclose(arena["x"], [7.2 - (8 / 3) / (8 / np.sqrt(7) + 1)], rtol=1e-14)
    assert adamw.state["x"]["exp_avg"].tolist() == [2.0]
    assert adamw.state["x"]["exp_avg_sq"].tolist() == [4.0]
    assert adamw.state["x"]["step"] == 2


def test_maximize_negates_the_gradient() -> None:
    arena = Arena({"x": np.array([8.0])}, solo())
    adamw = optim.AdamW(arena, lr=0.25, eps=0.0, weight_decay=0.0, maximize=True)
    arena.grad["x"] += 3.0
    adamw.step()
    np.testing.assert_allclose(arena["x"], [8.25], rtol=1e-14)


@pytest.mark.parametrize("count", [1, 32_767, 32_768, 32_769, 70_000])
def test_blocks_make_no_difference(count: int) -> None:
    """The formula on whole arrays, in float64, is the oracle."""
    rng = np.random.default_rng(count)
    expected = rng.normal(size=count)
    arena = Arena({"x": expected.copy()}, solo())
    adamw = optim.AdamW(arena, lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    mean, square = np.zeros(count), np.zeros(count)
    for step in range(1, 4):
        grad = rng.normal(size=count)
        arena.grad["x"] += grad
        adamw.step()
        expected = (1 - 0.1 * 0.1) * expected
        mean = 0.8 * mean + 0.2 * grad
        square = 0.95 * square + 0.05 * grad**2
        root = np.sqrt(square / (1 - 0.95**step))
        expected = expected - 0.1 * mean / (1 - 0.8**step) / (root + 1e-3)
        np.testing.assert_allclose(arena["x"], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_keeps_small_squares_in_float32(dtype: Any) -> None:
    """A gradient of 2^-12 has a square of 2^-24, of which a thousandth is no float16."""
    arena = Arena({"x": np.ones(1, dtype)}, solo())
    adamw = optim.AdamW(arena, lr=0.25, eps=0.0, weight_decay=0.0)
    arena.grad["x"] += 2.0**-12
    adamw.step()
    assert adamw.state["x"]["exp_avg_sq"].dtype == np.float32
    np.testing.assert_allclose(adamw.state["x"]["exp_avg_sq"], [0.001 * 2.0**-24], rtol=1e-6)
    assert arena["x"].tolist() == [0.75]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": float("nan")}, ValueError, "lr must be finite, got nan"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be less than 1, got 1.0"),
        ({"lr": 0.1, "betas": (-0.1, 0.9)}, ValueError, r"betas\[0\] must be at least 0"),
        ({"lr": 0.1, "betas": 0.9}, TypeError, "betas must be two numbers, got 0.9"),
        ({"lr": 0.1, "eps": -1e-8}, ValueError, "eps must be at least 0"),
        ({"lr": 0.1, "weight_decay": float("inf")}, ValueError, "weight_decay must be finite"),
        ({"lr": 0.1, "maximize": None}, TypeError, "maximize must be True or False, got None"),
    ],
)
def test_invalid_hyperparameters_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        optim.AdamW(Arena({"x": np.ones(1)}, solo()), **options)
