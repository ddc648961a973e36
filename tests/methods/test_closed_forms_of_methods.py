"""What theory says of outer steps, elastic averaging and error feedback, to the number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    EASGD,
    Arena,
    Communicator,
    ElasticAverager,
    LocalSGD,
    ModelAverager,
    PostLocalSGDOptimizer,
    codecs,
    every,
    optim,
    outer,
    run_threads,
    solo,
)


def steps_of(made: outer.OuterOptimizer, rounds: int) -> np.ndarray:
    """How far each round goes if the workers always move by 1."""
    arena = Arena({"x": np.zeros(1)}, solo(), grad=False)
    averager = ModelAverager(every(1), solo(), outer=made)
    averager.begin(arena)
    found = [0.0]
    for _ in range(rounds):
        arena.flat[:] += 1
        averager.average_parameters(arena)
        found.append(float(arena.flat[0]))
    return np.diff(found)


def test_outer_momentum_makes_steps_of_the_known_length() -> None:
    """Form 3: DiLoCo's first step is 0.7 · 1.9 = 1.33 of the move, and they tend to 0.7 / 0.1 = 7.

    SlowMo's are alpha at first and alpha / (1 - beta) in the end.
    """
    diloco = steps_of(outer.SGD(0.7, momentum=0.9, nesterov=True), 400)
    assert diloco[0] == pytest.approx(1.33, rel=1e-12)
    assert diloco[-1] == pytest.approx(7.0, rel=1e-12)
    slowmo = steps_of(outer.SlowMo(lambda: 0.1, alpha=0.8, beta=0.6), 200)
    assert slowmo[0] == pytest.approx(0.8, rel=1e-12)
    assert slowmo[-1] == pytest.approx(0.8 / 0.4, rel=1e-12)


def ends_of_rounds(made: outer.OuterOptimizer, rounds: int, *, period: int = 3) -> np.ndarray:
    """Training on x² / 8 at rate 1, of one worker, after every round; q = 1 - (3/4)^period."""
    arena = Arena({"x": np.ones(1)}, solo())
    training = PostLocalSGDOptimizer(
        optim.SGD(arena, lr=1.0), ModelAverager(every(period), solo(), outer=made)
    )
    found = [1.0]
    for step in range(1, rounds * period + 1):
        arena.grad.flat[:] = arena.flat / 4
        training.step()
        if step % period == 0:
            found.append(float(arena.flat[0]))
    return np.array(found)


@pytest.mark.parametrize(
    ("made", "trace", "det"),
    [
        (
            lambda: outer.SGD(0.7, momentum=0.9, nesterov=True),
            lambda q: 1.9 * (1 - 0.7 * q),
            lambda q: 0.9 * (1 - 0.7 * q),
        ),
        (
            lambda: outer.SlowMo(lambda: 1.0, alpha=0.8, beta=0.6),
            lambda q: 1.6 - 0.8 * q,
            lambda q: 0.6,
        ),
    ],
    ids=["nesterov", "slowmo"],
)
def test_rounds_on_a_quadratic_follow_the_matrix_of_the_outer_loop(
    made: Any, trace: Any, det: Any
) -> None:
    """Form 7: x'' = trace x' - det x, by the trace and determinant of the outer loop's matrix."""
    q = 1 - 0.75**3
    found = ends_of_rounds(made(), 30)
    expected = trace(q) * found[1:-1] - det(q) * found[:-2]
    np.testing.assert_allclose(found[2:], expected, rtol=0, atol=1e-14)


def test_nesterov_is_stable_up_to_the_known_rate() -> None:
    """Form 7: at momentum 0.9 up to lr q = 3.8 / 2.8 = 1.357; q = 0.9998 after 30 local steps."""
    q = 1 - 0.75**30
    border = 3.8 / 2.8 / q
    for factor, grows in ((0.99, False), (1.01, True)):
        made = outer.SGD(factor * border, momentum=0.9, nesterov=True)
        found = np.abs(ends_of_rounds(made, 400, period=30))
        assert (found[-1] > found[100]) == grows


def test_slowmo_is_stable_up_to_the_known_rate() -> None:
    """Form 7: at momentum 0.6 up to alpha q = 2 (1 + 0.6)."""
    q = 1 - 0.75**30
    for factor, grows in ((0.99, False), (1.01, True)):
        made = outer.SlowMo(lambda: 1.0, alpha=factor * 3.2 / q, beta=0.6)
        found = np.abs(ends_of_rounds(made, 400, period=30))
        assert (found[-1] > found[100]) == grows


def test_the_centre_of_elastic_averaging_has_the_variance_of_its_linear_law() -> None:
    """Form 9, for our order: with m the workers' mean, c the centre, noise 1, h 1, p = 4

        m' = (1 - alpha) (a m + eta ξ / sqrt(p)) + alpha c      c' = (1 - beta) c + beta (…)

    whose stationary covariance solves a linear equation. 40,000 chains at once; the variance of a
    variance is 2 / n of its square, so 5 deviations are 3.5 %.
    """
    eta, beta, workers, chains = 0.1, 0.9, 4, 40_000
    alpha, a = beta / workers, 1 - eta
    system = np.array([[(1 - alpha) * a, alpha], [beta * a, 1 - beta]])
    noise = eta / np.sqrt(workers) * np.array([1 - alpha, beta])
    covariance = np.linalg.solve(
        np.eye(4) - np.kron(system, system), np.outer(noise, noise).reshape(-1)
    ).reshape(2, 2)

    def work(comm: Communicator) -> float:
        random = np.random.default_rng(comm.rank)
        arena = Arena({"x": np.zeros(chains)}, comm)
        training = EASGD(optim.SGD(arena, lr=eta), 1)
        for _ in range(60):
            arena.grad.flat[:] = arena.flat + random.normal(size=chains)
            training.step()
        return float(np.square(training.mean()["x"]).mean())

    assert run_threads(workers, work)[0] == pytest.approx(covariance[1, 1], rel=0.035)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_best_moving_rate_brings_all_together_as_the_closed_form(workers: int) -> None:
    """Form 9: alpha = 2 / (p + 2) and beta = p alpha leave p / (p + 2) of every difference.

    Two workers are as many as have a beta of at most 1. The sum of workers and centre stays; to
    rounding.
    """
    alpha = 2 / (workers + 2)

    def work(comm: Communicator) -> list[list[float]]:
        arena = Arena({"x": np.zeros(3)}, comm, grad=False)
        averager = ElasticAverager(every(1), comm, alpha=alpha, beta=workers * alpha)
        averager.begin(arena)
        arena.flat[...] = [[3.0, -1.0, 0.5], [2.0, 5.0, 0.5]][comm.rank]
        found = []
        for _ in range(5):
            all_of = [*comm.gather(arena.flat), averager.mean_of(arena)["x"]]
            found.append(np.concatenate(all_of).reshape(workers + 1, 3))
            averager.average_parameters(arena)
        return found

    for found in run_threads(workers, work):
        spread = [np.linalg.norm(values - values.mean(axis=0)) for values in found]
        np.testing.assert_allclose(
            np.divide(spread[1:], spread[:-1]), workers / (workers + 2), rtol=1e-12
        )
        for values in found:
            np.testing.assert_allclose(values.mean(axis=0), found[0].mean(axis=0), rtol=1e-12)


def test_signs_of_skewed_noise_go_the_wrong_way_and_error_feedback_the_right_one() -> None:
    """Form 11, the first counter-example: gradients of 4 with probability 1/4, else -1; mean 1/4.

    Signs say up in three of four steps. With what they lose sent later the way is that of the
    gradients, -1/4 a step: over 512 numbers, 200 steps and two workers the mean has a standard
    error of 2.17 / 450 = 0.005. What is unsent yet is at most four of 200 steps of 1: 0.02.
    """
    steps, rate = 200, 0.125

    def work(comm: Communicator, error_feedback: bool) -> float:
        random = np.random.default_rng(comm.rank)
        arena = Arena({"x": np.zeros(512)}, comm)
        training = LocalSGD(
            optim.SGD(arena, lr=rate), 1, compress=codecs.Sign(8), error_feedback=error_feedback
        )
        for _ in range(steps):
            arena.grad.flat[:] += np.where(random.random(512) < 0.25, 4.0, -1.0)
            training.step()
        return float(arena.flat.mean() / (steps * rate))

    without, feeding = (
        run_threads(2, lambda comm, flag=flag: work(comm, flag), hosts="1+1")[0]
        for flag in (False, True)
    )
    assert without > 0.25
    assert abs(feeding + 0.25) < 5 * 0.005 + 0.02


@pytest.mark.long
def test_signs_lose_their_way_and_error_feedback_finds_it() -> None:
    """Form 11, the second counter-example: from x1 + x2 = 1.98 on eps |x1 + x2| + |x1 - x2|

    signs alone keep the sum for ever; with what they lose sent later it comes to 0, but for the
    steps of a constant rate. Two hosts with the same data; a block of 8 is the example four times.
    """
    eps = 0.1

    def work(comm: Communicator, error_feedback: bool) -> float:
        start = np.array([1.0, 0.98] * 4)
        arena = Arena({"x": start}, comm)
        training = LocalSGD(
            optim.SGD(arena, lr=0.02), 1, compress=codecs.Sign(8), error_feedback=error_feedback
        )
        for _ in range(700):
            one, two = arena.flat[::2], arena.flat[1::2]
            along, across = eps * np.sign(one + two), np.where(one >= two, 1.0, -1.0)
            arena.grad.flat[::2] += along + across
            arena.grad.flat[1::2] += along - across
            training.step()
        return float(arena.flat[:2].sum())

    without, feeding = (
        run_threads(2, lambda comm, flag=flag: work(comm, flag), hosts="1+1")[0]
        for flag in (False, True)
    )
    assert without == pytest.approx(1.98, abs=1e-9)
    assert abs(feeding) < 0.2
