"""SCAFFOLD against its paper's own variables, and at the optimum that local SGD misses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    SCAFFOLD,
    Arena,
    Communicator,
    GradientStage,
    LocalSGD,
    MismatchError,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, outcomes

PERIOD = 4


def curvature(rank: int) -> np.ndarray:
    return np.array([0.5 + rank, 2.0 - 0.25 * rank, 1.0])


def target(rank: int) -> np.ndarray:
    return np.array([rank, -rank, rank**2 / 2.0])


def gradient(rank: int, x: np.ndarray) -> np.ndarray:
    return curvature(rank) * (x - target(rank))


def rate(step: int) -> float:
    return 0.1 / (1 + step // 5)


def train(comm: Communicator, training: Any, arena: Arena, steps: range) -> list[np.ndarray]:
    found = []
    for step in steps:
        training.param_groups[0]["lr"] = rate(step)
        arena.grad.flat[:] = gradient(comm.rank, arena.flat)
        training.step()
        found.append(arena.flat.copy())
    return found


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_training_is_the_papers_after_every_step(size: int, hosts: str) -> None:
    """With c_i, c and x, option II; the rate changes within a round, as the sum of rates says.

    Tolerances are of rounding: one variable stands here for two of the paper's.
    """
    x = np.ones(3)
    controls, common = [np.zeros(3)] * size, np.zeros(3)
    expected, y, moved = [], [x] * size, 0.0
    for step in range(14):
        eta = rate(step)
        y = [
            values - eta * (gradient(rank, values) - controls[rank] + common)
            for rank, values in enumerate(y)
        ]
        moved += eta
        if (step + 1) % PERIOD == 0:
            controls = [
                control - common + (x - values) / moved
                for control, values in zip(controls, y, strict=True)
            ]
            common, x, moved = sum(controls) / size, sum(y) / size, 0.0
            y = [x] * size
        expected.append(list(y))

    def work(comm: Communicator) -> list[np.ndarray]:
        arena = Arena({"x": np.ones(3)}, comm)
        return train(comm, SCAFFOLD(optim.SGD(arena, lr=0.1), PERIOD), arena, range(14))

    for rank, found in enumerate(run_threads(size, work, hosts=hosts)):
        for values, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(values, wanted[rank], rtol=1e-12, atol=1e-13)


def test_different_data_end_at_the_optimum_of_all() -> None:
    """Closed form 6: it is (Σ A)^-1 Σ A b, where local SGD stays away from it."""
    ranks = range(3)
    optimum = sum(curvature(r) * target(r) for r in ranks) / sum(curvature(r) for r in ranks)

    def work(comm: Communicator) -> list[float]:
        far = []
        for kind in (SCAFFOLD, LocalSGD):
            arena = Arena({"x": np.zeros(3)}, comm)
            training = kind(optim.SGD(arena, lr=0.1), 8)
            for _ in range(1600):
                arena.grad.flat[:] = gradient(comm.rank, arena.flat)
                training.step()
            far.append(float(np.abs(arena.flat - optimum).max()))
        return far

    for controlled, local in run_threads(3, work):
        assert controlled < 1e-12
        assert local > 0.01


@pytest.mark.parametrize("stop", range(2 * PERIOD + 1))
def test_resuming_at_any_step_is_never_having_stopped(stop: int) -> None:
    def work(comm: Communicator) -> None:
        whole, arena = (Arena({"x": np.ones(3)}, comm) for _ in range(2))
        training, later = (SCAFFOLD(optim.SGD(a, lr=0.1), PERIOD) for a in (whole, arena))
        train(comm, training, whole, range(stop))
        later.load_state_dict(training.state_dict())
        arena.flat[...] = whole.flat
        train(comm, training, whole, range(stop, 3 * PERIOD + 1))
        train(comm, later, arena, range(stop, 3 * PERIOD + 1))
        assert arena.flat.tobytes() == whole.flat.tobytes()

    run_threads(2, work)


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    arena = Arena({"x": np.ones(3)}, solo())
    training = SCAFFOLD(optim.SGD(arena, lr=0.1), PERIOD)
    train(solo(), training, arena, range(PERIOD + 1))
    before = training.state_dict()
    control = before["control"]
    for wrong, message in (
        (None, "must have 'control' with values and sum_of_rates, got None"),
        ({"values": control["values"]}, "must have 'control' with values and sum_of_rates"),
        ({**control, "values": [np.ones(4)]}, r"must have shapes \[\(3,\)\], got \[\(4,\)\]"),
        ({**control, "sum_of_rates": -1.0}, "a saved sum_of_rates must be at least 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            training.load_state_dict({**before, "control": wrong})
    assert str(training.state_dict()) == str(before)


def test_in_a_warm_up_nothing_is_learned() -> None:
    """Then training is as if it began there: only local steps count for what is."""

    def work(comm: Communicator) -> None:
        whole, arena = (Arena({"x": np.ones(3)}, comm) for _ in range(2))
        stage = GradientStage(comm=comm)
        training = SCAFFOLD(optim.SGD(whole, lr=0.1), PERIOD, synchronous_steps=3, gradients=stage)
        for _ in range(3):
            whole.grad.flat[:] = gradient(comm.rank, whole.flat)
            training.step()
        arena.flat[...] = whole.flat
        later = SCAFFOLD(optim.SGD(arena, lr=0.1), PERIOD)
        one, other = (
            train(comm, each, place, range(9))
            for each, place in ((training, whole), (later, arena))
        )
        assert [values.tobytes() for values in one] == [values.tobytes() for values in other]

    run_threads(2, work)


def test_a_step_left_out_counts_as_one_by_the_control_variate() -> None:
    """By hand: rate 1, gradients 1 and 3, period 2, and rank 1 leaves out the step after a round.

    Both stand at -4 after the first round, and know controls of -1 and 1. Then rank 0 takes two
    steps of 1 + 1 to -8, rank 1 one of 3 - 1 to -6. The mean is -7, and half of what it moves each
    by is 0.5 and -0.5: controls of -0.5 and 0.5, with which steps are of 1.5 and 2.5.
    """

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = SCAFFOLD(optim.SGD(arena, lr=1.0), 2)
        found = []
        for step in range(5):
            if (comm.rank, step) == (1, 2):
                training.skip_step()
            else:
                arena.grad["x"] += 1.0 + 2.0 * comm.rank
                training.step()
            found.append(float(arena["x"][0]))
        return found

    assert run_threads(2, work) == [[-1.0, -4.0, -6.0, -7.0, -8.5], [-3.0, -4.0, -4.0, -7.0, -9.5]]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda a: optim.Adam(a, lr=0.1), TypeError, "SCAFFOLD must have an optim.SGD, got Adam"),
        (
            lambda a: optim.SGD(a, lr=0.1, momentum=0.9),
            ValueError,
            "SGD at one learning rate, without mom",
        ),
        (lambda a: optim.SGD(a, lr=0.1, maximize=True), ValueError, "'maximize': True}"),
        (lambda _: 0.1, TypeError, "optim must be an optimizer of localsgd.optim, got 0.1"),
    ],
)
def test_other_optimizers_are_refused(make: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        SCAFFOLD(make(Arena({"x": np.ones(3)}, solo())), 4)


def test_what_is_wrong_on_one_rank_is_an_error_on_all() -> None:
    def momentum_on_one(comm: Communicator) -> None:
        arena = Arena({"x": np.ones(3)}, comm)
        SCAFFOLD(optim.SGD(arena, lr=0.1, momentum=0.9 * (comm.rank == 1)), 4)

    def other_rates(comm: Communicator) -> None:
        arena = Arena({"x": np.ones(3)}, comm)
        training = SCAFFOLD(optim.SGD(arena, lr=0.1), 2)
        training.param_groups[0]["lr"] = 0.1 * (1 + comm.rank)
        for _ in range(2):
            training.step()

    def weighed(comm: Communicator) -> None:
        arena = Arena({"x": np.ones(3)}, comm)
        training = SCAFFOLD(optim.SGD(arena, lr=0.1), 1)
        training.record_samples(3)
        training.step()

    # Hyperparameters that differ are noticed where the optimizer is made.
    assert all(isinstance(found, Exception) for found in outcomes(2, momentum_on_one))
    for found in outcomes(2, other_rates):
        assert isinstance(found, MismatchError)
        assert "sum of rates of 0.4" in str(found)
    for found in outcomes(2, weighed):
        assert isinstance(found, ValueError)
        assert "must weigh equally under SCAFFOLD, got weight 3.0" in str(found)
