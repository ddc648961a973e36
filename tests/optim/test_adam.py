"""Adam against steps worked out by hand, and against the formula over several blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import Arena, optim, solo


def test_weight_decay_goes_through_the_moments() -> None:
    """x = 8, decay 1/2: grad 4 - 4 = 0, so nothing moves; AdamW would shrink x by lr/2."""
    arena = Arena({"x": np.array([8.0])}, solo())
    adam = optim.Adam(arena, lr=0.25, weight_decay=0.5)
    arena.grad["x"] -= 4.0
    adam.step()
    assert arena["x"].tolist() == [8.0]
    assert adam.state["x"]["exp_avg"].tolist() == [0.0]


def test_amsgrad_divides_by_the_largest_square_so_far() -> None:
    """betas 0 and 1/2, eps 0, lr 1, gradients 4 then 0 then 1.

    v = 8, 4, 2.5; the largest 8, 8, 8; √(1 - βᵗ) = √(1/2), √(3/4), √(7/8); m = 4, 0, 1.
    Steps: 4 √½ / √8 = 1; 0; √(7/8) / √8 = √7/8.
    """
    arena = Arena({"x": np.array([0.0])}, solo())
    adam = optim.Adam(arena, lr=1.0, betas=(0.0, 0.5), eps=0.0, amsgrad=True)
    for grad in (4.0, 0.0, 1.0):
        arena.grad["x"] += grad
        adam.step()
    np.testing.assert_allclose(arena["x"], [-1 - np.sqrt(7) / 8], rtol=1e-14)
    assert adam.state["x"]["max_exp_avg_sq"].tolist() == [8.0]
    assert adam.state["x"]["exp_avg_sq"].tolist() == [2.5]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW])
def test_blocks_make_no_difference(make: Any, amsgrad: bool) -> None:
    """The formula on whole arrays is the oracle; 70 000 elements are three blocks."""
    rng = np.random.default_rng(0)
    expected = rng.normal(size=70_000)
    arena = Arena({"x": expected.copy()}, solo())
    adam = make(arena, lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, amsgrad=amsgrad)
    mean, square = np.zeros(70_000), np.zeros(70_000)
    largest = np.zeros(70_000)
    for step in range(1, 4):
        grad = rng.normal(size=70_000) / step
        arena.grad["x"] += grad
        adam.step()
        if make is optim.AdamW:
            expected = (1 - 0.1 * 0.1) * expected
        else:
            grad = grad + 0.1 * expected
        mean, square = 0.8 * mean + 0.2 * grad, 0.95 * square + 0.05 * grad**2
        largest = np.maximum(largest, square)
        root = np.sqrt((largest if amsgrad else square) / (1 - 0.95**step))
        expected = expected - 0.1 * mean / (1 - 0.8**step) / (root + 1e-3)
        np.testing.assert_allclose(arena["x"], expected, rtol=1e-12, atol=1e-14)
