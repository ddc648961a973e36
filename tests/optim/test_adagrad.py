"""Adagrad against steps worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import Arena, optim, solo


def test_squares_are_summed_and_divide_the_gradient() -> None:
    """Gradients 3 and 4, lr 1, eps 0: 3/3 = 1, then 4/√(9 + 16) = 4/5."""
    arena = Arena({"x": np.array([2.0])}, solo())
    adagrad = optim.Adagrad(arena, lr=1.0, eps=0.0)
    seen = []
    for grad in (3.0, 4.0):
        arena.grad["x"] += grad
        adagrad.step()
        seen.append(float(arena["x"][0]))
    np.testing.assert_allclose(seen, [1.0, 0.2], rtol=1e-14)
    assert adagrad.state["x"]["sum"].tolist() == [25.0]


def test_the_sum_starts_at_its_initial_value_and_lr_decays() -> None:
    """Sum 9 + 16 = 25, then + 0 + 0; lr 1, then 1/(1 + 1/2). Steps 4/(5 + 5), 0."""
    arena = Arena({"x": np.array([1.0])}, solo())
    adagrad = optim.Adagrad(arena, lr=1.0, lr_decay=0.5, initial_accumulator_value=9.0, eps=5.0)
    arena.grad["x"] += 4.0
    adagrad.step()
    np.testing.assert_allclose(arena["x"], [0.6], rtol=1e-14)
    arena.grad["x"] += np.sqrt(75.0)
    adagrad.step()
    np.testing.assert_allclose(arena["x"], [0.6 - np.sqrt(75) / 1.5 / 15], rtol=1e-14)


def test_weight_decay_and_maximize() -> None:
    """Gradient -(4) + 2·1/2 = -3: a step of one learning rate upwards."""
    arena = Arena({"x": np.array([2.0])}, solo())
    adagrad = optim.Adagrad(arena, lr=0.25, weight_decay=0.5, eps=0.0, maximize=True)
    arena.grad["x"] += 4.0
    adagrad.step()
    assert arena["x"].tolist() == [2.25]
    assert adagrad.state["x"]["sum"].tolist() == [9.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_decay": -1.0}, "lr_decay must be at least 0"),
        ({"initial_accumulator_value": float("nan")}, "initial_accumulator_value must be finite"),
    ],
)
def test_invalid_hyperparameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.Adagrad(Arena({"x": np.ones(1)}, solo()), lr=0.1, **options)
