"""Outer optimizers: trajectories by hand, identities, and bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
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
    solo,
)
from workers import LAYOUTS

DILOCO = {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def moved(
    comm: Communicator, made: outer.OuterOptimizer, moves: Sequence[float], start: float = 10.0
) -> list[float]:
    """Where a parameter is after every round, if the workers move by ``moves[round]`` on average.

    Rank r moves by (r + 1) / ((size + 1) / 2) of it.
    """
    arena = Arena({"x": np.full(3, start)}, comm)
    averager = ModelAverager(every(1), comm, outer=made)
    averager.begin(arena)
    share, found = 2 * (comm.rank + 1) / (comm.size + 1), []
    for move in moves:
        arena.flat[:] += share * move
        averager.average_parameters(arena)
        assert arena.flat[0] == arena.flat[1] == arena.flat[2]
        found.append(float(arena.flat[0]))
    return found


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_nesterov_by_hand(size: int, hosts: str) -> None:
    """Moves of -1 are deltas of 1: buffers 1, 1.9, 2.71; steps 0.7 (1 + 0.9 buffer).

    10 - 1.33 = 8.67; 8.67 - 0.7 (1 + 1.71) = 6.773; 6.773 - 0.7 (1 + 2.439) = 4.3657.
    """
    for found in run_threads(
        size, lambda comm: moved(comm, outer.SGD(**DILOCO), [-1.0] * 3), hosts=hosts
    ):
        assert found == pytest.approx([8.67, 6.773, 4.3657], rel=1e-14)


def test_heavy_ball_by_hand() -> None:
    """Buffers 1, 1.5 and, for a delta of -2, -1.25; steps of half of them."""
    for found in run_threads(
        3, lambda comm: moved(comm, outer.SGD(0.5, momentum=0.5), [-1.0, -1.0, 2.0]), hosts="2+1"
    ):
        assert found == pytest.approx([9.5, 8.75, 9.375], rel=1e-14)


def test_a_constant_delta_moves_by_the_rate_over_one_minus_momentum_in_the_end() -> None:
    """At once by nu (1 + mu) = 1.33 of the mean's way, in the end by nu / (1 - mu) = 7."""
    found = [10.0, *moved(solo(), outer.SGD(**DILOCO), [-1.0] * 300)]
    ways = -np.diff(found)
    assert ways[0] == pytest.approx(1.33, rel=1e-12)
    assert ways[-1] == pytest.approx(7.0, rel=1e-10)


@pytest.mark.parametrize(
    "made",
    [
        lambda: outer.SGD(lr=1.0, momentum=0.0),
        lambda: outer.SlowMo(lambda: 0.1, alpha=1.0, beta=0.0),
        lambda: outer.BMUF(1),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize(("size", "hosts"), [(1, "1"), (3, "2+1"), (4, "4"), (6, "3+2+1")])
def test_a_rate_of_1_without_momentum_is_plain_averaging_to_the_bit(
    size: int, hosts: str, dtype: Any, made: Callable[[], outer.OuterOptimizer]
) -> None:
    """Signed zeros, subnormal numbers and numbers near the largest, too."""
    least, most = ml_dtypes.finfo(dtype).smallest_subnormal, ml_dtypes.finfo(dtype).max
    odd = np.array([0.0, -0.0, least, -least, most, -most], dtype)

    def work(comm: Communicator) -> bool:
        random = np.random.default_rng(comm.rank)
        values = np.concatenate([odd, random.normal(size=(400)).astype(dtype)])
        plain, stepped = (Arena({"x": values}, comm, start="keep") for _ in range(2))
        averager = ModelAverager(every(1), comm, outer=made())
        averager.begin(stepped)
        for _ in range(3):
            ModelAverager(every(1), comm).average_parameters(plain)
            averager.average_parameters(stepped)
            change = random.normal(size=plain.flat.size).astype(dtype)
            change[:6] = 0
            plain.flat[:] += change
            stepped.flat[:] += change
        return plain.flat.tobytes() == stepped.flat.tobytes()

    assert all(run_threads(size, work, hosts=hosts))


def written_out_slowmo(
    gammas: Sequence[float], deltas: Sequence[float], alpha: float, beta: float
) -> list[float]:
    """Algorithm 1 of the paper as it stands there."""
    x, u, found = 10.0, 0.0, []
    for gamma, delta in zip(gammas, deltas, strict=True):
        if gamma:
            u = beta * u + delta / gamma
            x = x - alpha * gamma * u
        else:
            x = x - delta
        found.append(x)
    return found


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.7), (0.5, 0.4), (1.0, 0.0)])
def test_slowmo_is_the_papers_under_a_rate_that_changes(alpha: float, beta: float) -> None:
    """A round at rate 0 takes the mean and keeps the momentum."""
    gammas, deltas = [0.1, 0.1, 0.05, 0.0, 0.2, 0.01], [1.0, -0.5, 2.0, 0.25, 1.0, 1.0]

    def work(comm: Communicator) -> list[float]:
        rounds = iter(gammas)
        made = outer.SlowMo(lambda: next(rounds), alpha=alpha, beta=beta)
        return moved(comm, made, [-delta for delta in deltas])

    expected = written_out_slowmo(gammas, deltas, alpha, beta)
    for found in run_threads(3, work, hosts="2+1"):
        assert found == pytest.approx(expected, rel=1e-13)


def test_slowmo_at_a_constant_rate_is_heavy_ball() -> None:
    moves = [-1.0, 0.5, 2.0, -3.0]
    slow = moved(solo(), outer.SlowMo(lambda: 0.1, alpha=0.8, beta=0.6), moves)
    assert slow == pytest.approx(moved(solo(), outer.SGD(0.8, momentum=0.6), moves), rel=1e-13)


def test_slowmo_reads_the_rate_of_the_inner_optimizer() -> None:
    arena = Arena({"x": np.full(1, 10.0)}, solo())
    inner = optim.SGD(arena, lr=0.5)
    made = outer.SlowMo(inner, beta=0.5)
    training = PostLocalSGDOptimizer(inner, ModelAverager(every(1), solo(), outer=made))
    found = []
    for rate in (0.5, 0.25):
        inner.param_groups[0]["lr"] = rate
        arena.grad.flat[:] = 2.0
        training.step()
        found.append(arena.flat[0])
    # Deltas 1 and 0.5: u = 2, then 1 + 2 = 3; steps 0.5 · 2 and 0.25 · 3.
    assert found == [9.0, 8.25]


def test_block_momentum_is_heavy_ball_with_the_papers_momentum() -> None:
    moves = [-1.0, 0.5, 2.0]
    assert outer.BMUF(4).momentum == 0.75
    assert moved(solo(), outer.BMUF(4), moves) == moved(solo(), outer.SGD(momentum=0.75), moves)
    assert moved(solo(), outer.BMUF(2, nesterov=True), moves) == moved(
        solo(), outer.SGD(momentum=0.5, nesterov=True), moves
    )


@pytest.mark.parametrize(
    ("made", "second_moments"),
    [
        (outer.Adagrad(0.1, beta1=0.5, tau=0.5), [1.0, 5.0]),
        (outer.Adam(0.1, beta1=0.5, beta2=0.75, tau=0.5), [0.25, 1.1875]),
        (outer.Yogi(0.1, beta1=0.5, beta2=0.75, tau=0.5), [0.25, 1.25]),
    ],
)
def test_adaptive_ones_by_hand(made: outer.OuterOptimizer, second_moments: list[float]) -> None:
    """Deltas 1 and -2: m = 0.5, then 0.25 - 1 = -0.75; no bias correction.

    Adam: v = 0.25, then 0.1875 + 1. Yogi: 0 - 0.25 · 1 · sign(0 - 1), then 0.25 + 0.25 · 4.
    """
    first = 10 - 0.1 * 0.5 / (second_moments[0] ** 0.5 + 0.5)
    second = first + 0.1 * 0.75 / (second_moments[1] ** 0.5 + 0.5)
    for found in run_threads(2, lambda comm: moved(comm, made, [-1.0, 2.0])):
        assert found == pytest.approx([first, second], rel=1e-13)


@pytest.mark.parametrize(
    ("kind", "hyperparameters"),
    [
        (optim.SGD, {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
        (optim.SGD, {"lr": 0.7, "maximize": True}),
        (optim.Adam, {"lr": 0.1, "eps": 0.1}),
        (optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
        (optim.Adagrad, {"lr": 0.1}),
        (optim.RMSprop, {"lr": 0.1, "centered": True}),
        (optim.Lion, {"lr": 0.1}),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_inner_optimizer_as_outer_is_its_own_step_on_the_delta(
    kind: Any, hyperparameters: dict[str, Any], dtype: Any
) -> None:
    """To the bit: one worker whose gradient is the delta."""
    random = np.random.default_rng(0)
    values = random.normal(size=7).astype(dtype)
    reference, arena = (Arena({"x": values}, solo()) for _ in range(2))
    inner = kind(reference, **hyperparameters)
    averager = ModelAverager(every(1), solo(), outer=outer.using(kind, **hyperparameters))
    averager.begin(arena)
    for _ in range(4):
        before = arena.flat.copy()
        arena.flat[:] += random.normal(size=7).astype(dtype)
        reference.grad.flat[:] = before - arena.flat
        inner.step()
        averager.average_parameters(arena)
        assert arena.flat.tobytes() == reference.flat.tobytes()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: outer.SGD(-1.0), ValueError, "lr must be at least 0, got -1.0"),
        (lambda: outer.SGD(momentum=1.0), ValueError, "momentum must be less than 1, got 1.0"),
        (lambda: outer.SGD(nesterov=True), ValueError, "nesterov must have momentum above 0"),
        (lambda: outer.SlowMo(0.1), TypeError, "inner must be an optimizer or a function, got 0.1"),
        (lambda: outer.SlowMo(float, beta=1.0), ValueError, "beta must be less than 1"),
        (lambda: outer.BMUF(0), ValueError, "workers must be at least 1, got 0"),
        (lambda: outer.Adam(0.1, tau=0), ValueError, "tau must be above 0"),
        (lambda: outer.Yogi(0.1, beta2=1), ValueError, "beta2 must be less than 1"),
        (lambda: outer.using(optim.Muon, lr=0.1), ValueError, "got Muon, which needs whole"),
        (lambda: outer.using(float), TypeError, "kind must be a class of localsgd.optim"),
        (lambda: outer.using(optim.SGD, lr=-1.0), ValueError, "lr must be at least 0"),
        (lambda: ModelAverager(every(1), solo(), outer=0.7), TypeError, "outer must be an opt"),
    ],
)
def test_bad_input_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
