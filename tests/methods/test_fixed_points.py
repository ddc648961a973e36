"""Where local gradient descent ends on quadratics that differ from worker to worker.

Each worker descends ½ (x - b)'A(x - b) of its own, without noise; so the point where rounds leave
the mean is the solution of a small linear system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    outer,
    run_threads,
)
from workers import LAYOUTS


@pytest.mark.parametrize("outer_lr", [1.0, 0.5, 1.5])
@pytest.mark.parametrize(("size", "hosts"), [(1, "1"), (3, "2+1")])
def test_an_outer_step_moves_from_the_anchor_towards_the_mean(
    size: int, hosts: str, outer_lr: float
) -> None:
    """Form 2: x = x0 + lr (mean - x0); of one worker, Lookahead. Workers drift by r + 1 a round."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(5)}, comm)
        averager = ModelAverager(every(2), comm, outer=outer.SGD(outer_lr))
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        seen = []
        for _ in range(6):
            arena.grad.flat[...] = -(comm.rank + 1) / 2
            training.step()
            seen.append(arena["x"].copy())
        return [values.tolist() for values in seen[1::2]]

    mean = (size + 1) / 2
    for rounds in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(
            rounds, [[mean * outer_lr * k] * 5 for k in (1, 2, 3)], rtol=1e-14
        )


def problem(rank: int, alike: bool) -> tuple[np.ndarray, np.ndarray]:
    """A positive definite A and a centre b of ½(x-b)'A(x-b), of this rank alone."""
    rng = np.random.default_rng(0 if alike else rank)
    root = rng.normal(size=(3, 3))
    return root @ root.T / 6 + 0.5 * np.eye(3), np.random.default_rng(100 + rank).normal(size=3)


def solve(
    size: int,
    hosts: str,
    period: int,
    rounds: int,
    *,
    alike: bool,
    made: Callable[[], outer.OuterOptimizer | None] = lambda: None,
) -> np.ndarray:
    """Where local gradient descent at lr 0.1 ends, equal on all ranks."""

    def work(comm: Communicator) -> np.ndarray:
        curvature, centre = problem(comm.rank, alike)
        arena = Arena({"x": np.zeros(3)}, comm)
        averager = ModelAverager(every(period), comm, outer=made())
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.1), averager)
        for _ in range(rounds * period):
            arena.grad["x"] = curvature @ (arena["x"] - centre)
            training.step()
        return arena["x"].copy()

    results = run_threads(size, work, hosts=hosts)
    assert len({result.tobytes() for result in results}) == 1
    return results[0]


@pytest.mark.parametrize("period", [1, 4, 16])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_heterogeneous_workers_end_at_the_known_fixed_point(
    size: int, hosts: str, period: int
) -> None:
    """P_k = I - (I - η A_k)^H; the fixed point is (Σ P_k)⁻¹ Σ P_k b_k.

    At H = 1 that is the optimum (Σ A_k)⁻¹ Σ A_k b_k. Curvatures are above ½, so 500 steps at 0.1
    leave less than 0.95^500 = 7e-12 of the distance.
    """
    problems = [problem(rank, alike=False) for rank in range(size)]
    pulls = [
        np.eye(3) - np.linalg.matrix_power(np.eye(3) - 0.1 * curvature, period)
        for curvature, _ in problems
    ]
    expected = np.linalg.solve(
        sum(pulls), sum(pull @ centre for pull, (_, centre) in zip(pulls, problems, strict=True))
    )
    found = solve(size, hosts, period, 1 + 500 // period, alike=False)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    optimum = np.linalg.solve(
        sum(curvature for curvature, _ in problems),
        sum(curvature @ centre for curvature, centre in problems),
    )
    biased = size > 1 and period > 1
    assert np.allclose(found, optimum, rtol=1e-6, atol=1e-9) != biased


@pytest.mark.long
@pytest.mark.parametrize(
    "made",
    [
        lambda: outer.SGD(0.5),
        lambda: outer.SGD(1.3),
        lambda: outer.SGD(0.7, momentum=0.9, nesterov=True),
        lambda: outer.SlowMo(lambda: 0.1, beta=0.6),
    ],
    ids=["slower", "faster", "nesterov", "slowmo"],
)
def test_outer_rates_and_momenta_leave_the_fixed_point_where_it_is(made: Any) -> None:
    """There the mean of the workers' moves is 0, and so is every multiple of it."""
    plain = solve(3, "2+1", 8, 100, alike=False)
    stepped = solve(3, "2+1", 8, 300, alike=False, made=made)
    np.testing.assert_allclose(stepped, plain, rtol=1e-10, atol=1e-12)


def test_long_periods_end_at_the_mean_of_the_centres() -> None:
    centres = [problem(rank, alike=False)[1] for rank in range(3)]
    found = solve(3, "2+1", 600, 2, alike=False)
    np.testing.assert_allclose(found, np.mean(centres, axis=0), rtol=1e-9)


def test_equal_curvatures_leave_no_bias() -> None:
    centres = [problem(rank, alike=True)[1] for rank in range(4)]
    found = solve(4, "0,2/1,3", 16, 60, alike=True)
    np.testing.assert_allclose(found, np.mean(centres, axis=0), rtol=1e-9)
