"""What theory says about local SGD, through the averagers.

The problems are quadratics, whose trajectories and stationary laws are known exactly. Random
ones use many independent coordinates, so one run measures a variance to a known error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    GradientStage,
    LocalSGD,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, gradient, initial_values


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_period_one_is_minibatch_sgd_also_with_local_momentum_and_decay(
    size: int, hosts: str, options: dict[str, Any]
) -> None:
    """All of it is linear, so the mean of the workers' buffers is the minibatch's buffer."""

    def rate(step: int) -> float:
        return 0.1 / step

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena(initial_values(), comm)
        training = LocalSGD(optim.SGD(arena, lr=0.1, weight_decay=0.05, **options), period=1)
        for step in range(1, 21):
            training.param_groups[0]["lr"] = rate(step)
            arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
            training.step()
        return arena.flat.copy()

    alone = Arena(initial_values(), solo())
    minibatch = optim.SGD(alone, lr=0.1, weight_decay=0.05, **options)
    for step in range(1, 21):
        minibatch.param_groups[0]["lr"] = rate(step)
        workers = [gradient(rank, step, alone.flat) for rank in range(size)]
        alone.grad.flat[...] = np.mean(workers, axis=0)
        minibatch.step()
    for flat in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(flat, alone.flat, rtol=1e-12, atol=1e-14)


def test_period_one_is_not_minibatch_adamw() -> None:
    """The square of a mean gradient is not the mean of squares: the exception, to be seen."""

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.AdamW(arena, lr=0.1, weight_decay=0.0), period=1)
        arena.grad["x"] += 1.0 if comm.rank else -3.0
        training.step()
        return arena["x"].copy()

    for values in run_threads(2, work):
        np.testing.assert_allclose(values, [0.0], atol=1e-8)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_averaged_gradients_are_the_minibatchs_whatever_the_optimizer(
    size: int, hosts: str, kind: str
) -> None:
    """Unlike parameters, gradients are averaged before anything that is not linear."""

    def train(arena: Arena, take_step: Any, ranks: Any) -> np.ndarray:
        for step in range(1, 11):
            gradients = [gradient(rank, step, arena.flat) for rank in ranks]
            arena.grad.flat[...] = np.mean(gradients, axis=0)
            take_step()
        return arena.flat.copy()

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena(initial_values(), comm)
        inner = getattr(optim, kind)(arena, lr=0.05)
        stage = GradientStage("none", comm)
        training = LocalSGD(inner, 99, synchronous_steps=10, gradients=stage)
        return train(arena, training.step, [comm.rank])

    alone = Arena(initial_values(), solo())
    expected = train(alone, getattr(optim, kind)(alone, lr=0.05).step, range(size))
    for flat in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(flat, expected, rtol=1e-9, atol=1e-12)


def stationary(comm: Communicator, period: int, rounds: int, coordinates: int) -> list[float]:
    """Mean square after the last round, and the workers' spread before it.

    Gradient x + noise of variance 1 at lr 0.2, in independent coordinates from 0.
    """
    arena = Arena({"x": np.zeros(coordinates)}, comm)
    training = LocalSGD(optim.SGD(arena, lr=0.2), period)
    rng = np.random.default_rng([7, comm.rank])
    noise = np.empty(coordinates)
    spread = np.nan
    for step in range(1, rounds * period + 1):
        rng.standard_normal(out=noise)
        np.add(arena.flat, noise, out=arena.grad.flat)
        if step < rounds * period:
            training.step()
        else:
            training.optim.step()
            deviation = (arena.flat - training.mean()["x"]) ** 2
            squares = np.array([deviation.mean()])
            comm.allreduce(squares, "mean")
            spread = float(squares[0])
            training.averager.average_parameters([arena])
    return [float((arena.flat**2).mean()), spread]


@pytest.mark.parametrize(("period", "rounds"), [(16, 5), (1, 60)])
def test_variance_and_spread_of_the_stationary_law(period: int, rounds: int) -> None:
    """lr η = 0.2, curvature 1, noise 1, K = 8 workers, a = 1 - η.

        Var(average)          = η / (K (2 - η))                       = 0.0138889, whatever H
        spread before a round = (1 - 1/K) η² (1 - a^2H) / (1 - a²)    = 0.0971452 at H = 16

    A variance measured in n coordinates has relative error √(2/n), the spread √(2/(7n)): four
    standard deviations are allowed. After 60 steps the start weighs 0.8^120 = 2e-12.
    """
    coordinates = 20_000
    lr, size, decay = 0.2, 8, 0.8
    variance = lr / (size * (2 - lr))
    spread = (1 - 1 / size) * lr**2 * (1 - decay ** (2 * period)) / (1 - decay**2)
    results = run_threads(size, stationary, period, rounds, coordinates, hosts="3+3+2")
    for measured, measured_spread in results:
        assert abs(measured / variance - 1) < 4 * np.sqrt(2 / coordinates)
        assert abs(measured_spread / spread - 1) < 4 * np.sqrt(2 / (7 * coordinates))


def stationary_with_slopes(comm: Communicator, period: int, rounds: int) -> tuple[float, float]:
    """Mean square after the last round, and the standard error of that mean.

    Gradient (1 + 1.5 ξ) x + ζ at lr 0.2, ξ and ζ of variance 1, in 20,000 coordinates from 0.
    """
    arena = Arena({"x": np.zeros(20_000)}, comm)
    training = LocalSGD(optim.SGD(arena, lr=0.2), period)
    rng = np.random.default_rng([11, comm.rank])
    for _ in range(rounds * period):
        slope, noise = rng.standard_normal((2, arena.flat.size))
        arena.grad.flat[...] = (1 + 1.5 * slope) * arena.flat + noise
        training.step()
    squares = arena.flat**2
    return float(squares.mean()), float(squares.std() / np.sqrt(squares.size))


@pytest.mark.parametrize(
    ("period", "rounds", "expected"), [(1, 60, 0.01434), (4, 15, 0.01622), (16, 5, 0.01843)]
)
def test_where_noise_grows_with_the_distance_longer_periods_cost(
    period: int, rounds: int, expected: float
) -> None:
    """K = 8, η = 0.2, a = 1 - η = 0.8, σ₁ = 1.5, ρ = a² + η² σ₁² = 0.73.

        E x² = (η² (1 - ρ^H) / (1 - ρ) / K) / (1 - ρ^H / K - (1 - 1/K) a^2H)

    What the start weighs has fallen below 1e-9 by then. Four standard errors are allowed.
    """
    size, lr, decay, growth = 8, 0.2, 0.8, 0.73
    noise = lr**2 * (1 - growth**period) / (1 - growth) / size
    law = noise / (1 - growth**period / size - (1 - 1 / size) * decay ** (2 * period))
    assert round(law, 5) == expected
    for measured, error in run_threads(size, stationary_with_slopes, period, rounds, hosts="3+3+2"):
        assert abs(measured - law) < 4 * error


def test_a_round_contracts_by_the_power_of_the_local_step() -> None:
    """Common curvature ¼, lr 1/2: a round of H = 3 multiplies the distance by (7/8)³."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.full(1, 512.0)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=0.5), period=3)
        seen = []
        for step in range(1, 7):
            arena.grad["x"] = 0.25 * arena["x"]
            training.step()
            if step % 3 == 0:
                seen.append(float(arena["x"][0]))
        return seen

    assert run_threads(3, work, hosts="2+1") == [[343.0, 343.0 * 343.0 / 512.0]] * 3


@pytest.mark.parametrize("period", [1, 3, 7])
def test_workers_with_the_same_data_are_one_worker(period: int) -> None:
    """Whatever the period; to the bit, since the mean of equal values is that value."""

    def work(comm: Communicator) -> bytes:
        arena = Arena(initial_values(), comm)
        training = LocalSGD(optim.AdamW(arena, lr=0.01), period, comm=comm)
        for step in range(1, 15):
            arena.grad.flat[...] = gradient(0, step, arena.flat)
            training.step()
        return arena.flat.tobytes()

    alone = work(solo())
    for size, hosts in LAYOUTS:
        assert run_threads(size, work, hosts=hosts) == [alone] * size


@pytest.mark.parametrize("period", [1, 4, 16])
def test_bytes_fall_with_the_period(period: int) -> None:
    """M hosts of one worker send 2 (1 - 1/M) times the buffer each a round: 1/H a step."""

    def work(comm: Communicator) -> int:
        arena = Arena({"x": np.zeros(6000, np.float32)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=0.1), period)
        for _ in range(16):
            training.step()
        return training.averager.traffic.sent

    assert run_threads(3, work, hosts="1+1+1") == [16 // period * 2 * 2 * 24_000 // 3] * 3
