"""SGD against trajectories worked out by hand, and against the formula at every block edge."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import Arena, optim, solo


def one(value: float = 1.0, dtype: Any = np.float64) -> Arena:
    return Arena({"x": np.full(1, value, dtype)}, solo())


def trajectory(optimizer: optim.Optimizer, arena: Arena, grads: list[float]) -> list[float]:
    values = []
    for grad in grads:
        arena.grad["x"] += grad
        optimizer.step()
        values.append(float(arena["x"][0]))
    return values


def test_plain_steps_follow_the_gradient() -> None:
    arena = one()
    assert trajectory(optim.SGD(arena, lr=0.5), arena, [1.0, -2.0]) == [0.5, 1.5]


def test_momentum_starts_as_the_first_gradient_undampened() -> None:
    """Momentum 1/2, dampening 1/4, lr 1: buffers 1, 1/2 + 3/4·2 = 2, 1 + 3/4·4 = 4."""
    arena = one(8.0)
    sgd = optim.SGD(arena, lr=1.0, momentum=0.5, dampening=0.25)
    assert trajectory(sgd, arena, [1.0, 2.0, 4.0]) == [7.0, 5.0, 1.0]
    assert sgd.state["x"]["momentum_buffer"].tolist() == [4.0]


def test_nesterov_looks_ahead() -> None:
    """Momentum 1/2, lr 1: buffers 1, 5/2; steps 1 + 1/2 = 3/2 and 2 + 5/4 = 13/4."""
    arena = one(8.0)
    sgd = optim.SGD(arena, lr=1.0, momentum=0.5, nesterov=True)
    assert trajectory(sgd, arena, [1.0, 2.0]) == [6.5, 3.25]


def test_weight_decay_adds_to_the_gradient() -> None:
    """lr 1/2, decay 1/4: 8 - (0 + 2)/2 = 7, then 7 - (1 + 7/4)/2 = 5.625."""
    arena = one(8.0)
    assert trajectory(optim.SGD(arena, lr=0.5, weight_decay=0.25), arena, [0.0, 1.0]) == [7, 5.625]


def test_maximize_negates_the_gradient_but_not_the_decay() -> None:
    """lr 1/2, decay 1/4: 8 - (-4 + 2)/2 = 9."""
    arena = one(8.0)
    sgd = optim.SGD(arena, lr=0.5, weight_decay=0.25, maximize=True)
    assert trajectory(sgd, arena, [4.0]) == [9.0]


def test_momentum_switched_on_later_starts_then() -> None:
    arena = one(8.0)
    sgd = optim.SGD(arena, lr=1.0, dampening=0.5)
    assert trajectory(sgd, arena, [1.0]) == [7.0]
    assert "x" not in sgd.state
    sgd.param_groups[0]["momentum"] = 0.5
    assert trajectory(sgd, arena, [2.0, 2.0]) == [5.0, 3.0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("count", [1, 32_767, 32_768, 32_769, 70_000])
def test_blocks_make_no_difference(count: int, nesterov: bool) -> None:
    """The formula on whole arrays, in float64, is the oracle; both do the same arithmetic."""
    rng = np.random.default_rng(count)
    expected = rng.normal(size=count)
    arena = Arena({"x": expected.copy()}, solo())
    sgd = optim.SGD(arena, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    buffer = None
    for _ in range(3):
        grad = rng.normal(size=count)
        arena.grad["x"] += grad
        sgd.step()
        grad = grad + 0.01 * expected
        buffer = grad if buffer is None else 0.9 * buffer + grad
        expected = expected - 0.1 * (grad + 0.9 * buffer if nesterov else buffer)
        np.testing.assert_array_equal(arena["x"], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_computed_and_remembered_in_float32(dtype: Any) -> None:
    """Gradients 2^-12, 2^-6, 1 leave a buffer of 1 + 2^-7 + 2^-14: 15 bits, too many for both."""
    arena = one(1.0, dtype)
    sgd = optim.SGD(arena, lr=2.0**-3, momentum=0.5)
    trajectory(sgd, arena, [2.0**-12, 2.0**-6, 1.0])
    buffer = sgd.state["x"]["momentum_buffer"]
    assert buffer.dtype == np.float32
    assert buffer.tolist() == [1.0 + 2.0**-7 + 2.0**-14]
    assert arena["x"].dtype == dtype


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": float("nan")}, ValueError, "lr must be finite, got nan"),
        ({"lr": float("inf")}, ValueError, "lr must be finite, got inf"),
        ({"lr": -0.1}, ValueError, "lr must be at least 0, got -0.1"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"lr": True}, TypeError, "lr must be a number, got True"),
        ({"lr": 0.1, "momentum": -1}, ValueError, "momentum must be at least 0, got -1"),
        ({"lr": 0.1, "weight_decay": -1}, ValueError, "weight_decay must be at least 0"),
        ({"lr": 0.1, "dampening": float("nan")}, ValueError, "dampening must be finite"),
        ({"lr": 0.1, "nesterov": 1}, TypeError, "nesterov must be True or False, got 1"),
        ({"lr": 0.1, "nesterov": True}, ValueError, "nesterov must have momentum above 0"),
        (
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "nesterov": True},
            ValueError,
            "dampening 0, got momentum 0.9 and dampening 0.1",
        ),
    ],
)
def test_invalid_hyperparameters_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        optim.SGD(one(), **options)
