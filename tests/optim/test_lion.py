"""Lion against steps worked out by hand."""

from __future__ import annotations

import numpy as np

from localsgd import Arena, optim, solo


def test_a_step_is_the_sign_of_the_interpolated_momentum() -> None:
    """betas 1/2 and 3/4, lr 1/4; gradients (4, -1), then (-1, -1).

    m = (1, -1/4). Second direction m/2 + g/2 = (0, -5/8); m = (3/4 - 1/4, -3/16 - 1/4).
    """
    arena = Arena({"x": np.zeros(2)}, solo())
    lion = optim.Lion(arena, lr=0.25, betas=(0.5, 0.75))
    arena.grad["x"] += [4.0, -1.0]
    lion.step()
    assert arena["x"].tolist() == [-0.25, 0.25]
    assert lion.state["x"]["exp_avg"].tolist() == [1.0, -0.25]
    arena.grad["x"] -= 1.0
    lion.step()
    assert arena["x"].tolist() == [-0.25, 0.5]
    assert lion.state["x"]["exp_avg"].tolist() == [0.5, -0.4375]


def test_weights_decay_apart_from_the_sign() -> None:
    """(1 - 1/4 · 1/2) · 8 = 7, and a quarter upwards."""
    arena = Arena({"x": np.array([8.0])}, solo())
    lion = optim.Lion(arena, lr=0.25, weight_decay=0.5, maximize=True)
    arena.grad["x"] += 1e-3
    lion.step()
    assert arena["x"].tolist() == [7.25]
