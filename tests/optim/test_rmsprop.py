"""RMSprop against steps worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import Arena, optim, solo


def test_the_gradient_is_divided_by_the_root_of_its_mean_square() -> None:
    """alpha 3/4, gradients 4 and 2: squares 4, then 3 + 1 = 4; steps 4/2 and 2/2."""
    arena = Arena({"x": np.array([5.0])}, solo())
    rmsprop = optim.RMSprop(arena, lr=1.0, alpha=0.75, eps=0.0)
    seen = []
    for grad in (4.0, 2.0):
        arena.grad["x"] += grad
        rmsprop.step()
        seen.append(float(arena["x"][0]))
    assert seen == [3.0, 2.0]
    assert rmsprop.state["x"]["square_avg"].tolist() == [4.0]


def test_centering_takes_the_square_of_the_mean_away() -> None:
    """alpha 1/2, gradient 4: square 8, mean 2, √(8 - 4) = 2, a step of 4/(2 + 2)."""
    arena = Arena({"x": np.array([5.0])}, solo())
    rmsprop = optim.RMSprop(arena, lr=1.0, alpha=0.5, eps=2.0, centered=True)
    arena.grad["x"] += 4.0
    rmsprop.step()
    assert arena["x"].tolist() == [4.0]
    assert rmsprop.state["x"]["grad_avg"].tolist() == [2.0]


def test_momentum_sums_the_ratios() -> None:
    """alpha 0, eps 0: every ratio is a sign. Buffers 1, 3/2, 3/4 - 1."""
    arena = Arena({"x": np.array([0.0])}, solo())
    rmsprop = optim.RMSprop(arena, lr=1.0, alpha=0.0, eps=0.0, momentum=0.5)
    for grad in (4.0, 2.0, -3.0):
        arena.grad["x"] += grad
        rmsprop.step()
    assert arena["x"].tolist() == [-1 - 1.5 + 0.25]
    assert rmsprop.state["x"]["momentum_buffer"].tolist() == [-0.25]


def test_weight_decay_and_maximize() -> None:
    """Gradient -(4) + 2·1/2 = -3, of which the ratio is -1."""
    arena = Arena({"x": np.array([2.0])}, solo())
    rmsprop = optim.RMSprop(arena, lr=0.25, alpha=0.0, eps=0.0, weight_decay=0.5, maximize=True)
    arena.grad["x"] += 4.0
    rmsprop.step()
    assert arena["x"].tolist() == [2.25]


def test_only_what_is_used_is_kept() -> None:
    arena = Arena({"x": np.array([2.0])}, solo())
    rmsprop = optim.RMSprop(arena, lr=0.25)
    rmsprop.step()
    assert set(rmsprop.state["x"]) == {"square_avg", "step"}


def test_alpha_of_1_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be less than 1, got 1"):
        optim.RMSprop(Arena({"x": np.ones(1)}, solo()), lr=0.1, alpha=1.0)
