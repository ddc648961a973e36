"""Muon against steps worked out by hand, on matrices of every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import Arena, Communicator, MismatchError, optim, solo
from localsgd.optim.muon import orthogonalized
from workers import outcomes

POLYNOMIAL = (3.4445, -4.7750, 2.0315)


def quintic(value: float, steps: int) -> float:
    """What the iteration makes of one singular value."""
    a, b, c = POLYNOMIAL
    for _ in range(steps):
        value = a * value + b * value**3 + c * value**5
    return value


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2), (1, 4)])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).normal(size=shape)
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    mapped = [quintic(value, 5) for value in values / np.linalg.norm(values)]
    expected = u @ np.diag(mapped) @ v
    np.testing.assert_allclose(orthogonalized(matrix, POLYNOMIAL, 5, 1e-7), expected, atol=1e-12)


def test_the_direction_is_nesterovs_and_the_scale_that_of_the_form() -> None:
    """Steps 0: orthogonalized(d) = d/|d|. Momentum 1/2, gradient e: buffer e/2, d = 3/4 e.

    Of 4 rows and 1 column: scale 2; (1 - 1/4 · 1/2) · 8 = 7; minus 1/4 · 2 · 1.
    """
    arena = Arena({"w": np.full((4, 1), 8.0)}, solo())
    muon = optim.Muon(arena, lr=0.25, momentum=0.5, weight_decay=0.5, ns_steps=0)
    arena.grad["w"][0] += 3.0
    muon.step()
    assert arena["w"].reshape(-1).tolist() == [6.5, 7.0, 7.0, 7.0]
    assert muon.state["w"]["momentum_buffer"].reshape(-1).tolist() == [1.5, 0, 0, 0]


def test_momentum_mixes_and_plain_momentum_is_the_buffer() -> None:
    """Momentum 1/2, gradients (1, 0) then (0, 1): buffers (1/2, 0), (1/4, 1/2)."""
    arena = Arena({"w": np.zeros((1, 2))}, solo())
    muon = optim.Muon(arena, lr=1.0, momentum=0.5, weight_decay=0.0, nesterov=False, ns_steps=0)
    for column in (0, 1):
        arena.grad["w"][0, column] += 1.0
        muon.step()
    length = np.hypot(0.25, 0.5)
    np.testing.assert_allclose(arena["w"], [[-1 - 0.25 / length, -0.5 / length]], rtol=1e-14)


def test_the_scale_can_match_adamw() -> None:
    """0.2 · √max(2, 9) = 0.6 of a step of length 1."""
    arena = Arena({"w": np.zeros((2, 9))}, solo())
    muon = optim.Muon(arena, lr=1.0, weight_decay=0.0, ns_steps=0, adjust_lr_fn="match_rms_adamw")
    arena.grad["w"] += 1.0
    muon.step()
    np.testing.assert_allclose(np.linalg.norm(arena["w"]), 0.6, rtol=1e-14)


def test_neighbouring_matrices_are_orthogonalized_apart_and_zero_stays() -> None:
    arena = Arena({"a": np.zeros((2, 2)), "b": np.zeros((2, 3)), "c": np.zeros((3, 2))}, solo())
    muon = optim.Muon(arena, lr=1.0, weight_decay=0.0)
    arena.grad["a"] += 100 * np.eye(2)
    arena.grad["b"][0, 1] += 0.001
    muon.step()
    expected = quintic(np.sqrt(0.5), 5)
    np.testing.assert_allclose(arena["a"], -expected * np.eye(2), atol=1e-12)
    np.testing.assert_allclose(arena["b"][0, 1], -quintic(1.0, 5), rtol=1e-9)
    assert not arena["c"].any()
    assert muon.state["b"]["momentum_buffer"].shape == (2, 3)


def test_large_matrices_of_half_precision_are_computed_in_float32() -> None:
    """Larger than a block; identical rows give identical rows."""
    arena = Arena({"w": np.zeros((300, 200), np.float16)}, solo())
    muon = optim.Muon(arena, lr=1.0, weight_decay=0.0)
    arena.grad["w"] += np.linspace(0.5, 1, 200).astype(np.float16)
    muon.step()
    assert muon.state["w"]["momentum_buffer"].dtype == np.float32
    direction = np.tile(np.linspace(0.5, 1, 200).astype(np.float16).astype(float), (300, 1))
    expected = -quintic(1.0, 5) * np.sqrt(1.5) * direction / np.linalg.norm(direction)
    np.testing.assert_allclose(arena["w"].astype(float), expected, rtol=2e-3)


def test_anything_but_a_matrix_is_refused_and_the_rank_named_elsewhere() -> None:
    def work(comm: Communicator) -> optim.Muon:
        arena = Arena({"w": np.zeros((2, 2)), "b": np.zeros(2)}, comm)
        return optim.Muon(arena.subset("w") if comm.rank == 0 else arena, lr=0.1)

    other, own = outcomes(2, work)
    assert type(own) is ValueError
    assert "Muon must have 2 dimensions, got 'b' of shape (2,)" in str(own)
    assert isinstance(other, MismatchError)
    assert "got on rank 1" in str(other)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ns_coefficients": (1, 2)}, TypeError, "ns_coefficients must be three numbers"),
        ({"ns_steps": -1}, ValueError, "ns_steps must be at least 0"),
        ({"momentum": 1.0}, ValueError, "momentum must be less than 1"),
        ({"adjust_lr_fn": "best"}, ValueError, "adjust_lr_fn must be one of None, 'original'"),
    ],
)
def test_invalid_hyperparameters_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        optim.Muon(Arena({"w": np.ones((1, 1))}, solo()), lr=0.1, **options)
