"""EAMSGD against its paper's own variables, x and v, where our SGD keeps x + momentum · v."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import EASGD, Arena, Communicator, NotFiniteError, optim, run_threads, solo
from workers import LAYOUTS, assert_named_by_all, outcomes

PERIOD, STEPS, ETA, MOMENTUM, BETA = 3, 14, 0.05, 0.9, 0.8


def gradient(rank: int, step: int, x: np.ndarray) -> np.ndarray:
    pull = (rank + 1) * (x - np.cos(np.arange(x.size) + rank))
    return pull + 0.1 * np.sin(7.0 * rank + step)


def written_out(size: int, together: int = 0) -> list[tuple[list[np.ndarray], np.ndarray]]:
    """After every step where each worker takes its next gradient, and the centre.

    v = mom v; x = x + v; the gradient there; x = x - eta g; v = v - eta g; in a round
    x = x - alpha (x - c) and c = c + beta (mean of x - c), both with what was before.
    """
    alpha = BETA / size
    x, v, centre = [np.ones(5)] * size, [np.zeros(5)] * size, np.ones(5)
    found = []
    for step in range(1, STEPS + 1):
        for rank in range(size):
            v[rank] = MOMENTUM * v[rank]
            x[rank] = x[rank] + v[rank]
            g = gradient(rank, step, x[rank])
            x[rank], v[rank] = x[rank] - ETA * g, v[rank] - ETA * g
        if step <= together:
            # Synchronous steps are of what the workers hold.
            centre = sum(a + MOMENTUM * b for a, b in zip(x, v, strict=True)) / size
            x = [centre - MOMENTUM * b for b in v]
        elif (step - together) % PERIOD == 0:
            mean = sum(x) / size
            x = [at - alpha * (at - centre) for at in x]
            centre = centre + BETA * (mean - centre)
        found.append(([a + MOMENTUM * b for a, b in zip(x, v, strict=True)], centre))
    mean = sum(x) / size
    centre = centre + BETA * (mean - centre)
    return [*found, ([centre] * size, centre)]


def made(comm: Communicator, **options: Any) -> tuple[EASGD, Arena]:
    arena = Arena({"a": np.ones(2), "b": np.ones(3)}, comm)
    inner = optim.SGD(arena, lr=ETA, momentum=MOMENTUM, nesterov=True)
    return EASGD(inner, PERIOD, beta=BETA, look_ahead=True, **options), arena


def train(training: EASGD, arena: Arena, steps: range) -> list[np.ndarray]:
    found = []
    for step in steps:
        arena.grad.flat[:] += gradient(arena.comm.rank, step, arena.flat)
        training.step()
        found.append(arena.flat.copy())
    return found


@pytest.mark.parametrize("together", [0, 2])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_training_is_the_papers_after_every_step(size: int, hosts: str, together: int) -> None:
    """Tolerances are of rounding: one array stands here for two of the paper's."""
    expected = written_out(size, together)

    def work(comm: Communicator) -> None:
        training, arena = made(comm, synchronous_steps=together)
        for step in range(1, STEPS + 1):
            (at,) = train(training, arena, range(step, step + 1))
            points, centre = expected[step - 1]
            np.testing.assert_allclose(at, points[comm.rank], rtol=1e-12, atol=1e-13)
            mean = np.concatenate(list(training.mean().values()))
            np.testing.assert_allclose(mean, centre, rtol=1e-12, atol=1e-13)
        training.flush()
        np.testing.assert_allclose(arena.flat, expected[-1][1], rtol=1e-12, atol=1e-13)
        assert len({values.tobytes() for values in comm.gather(arena.flat)}) == 1

    run_threads(size, work, hosts=hosts)


def test_resuming_is_never_having_stopped() -> None:
    def work(comm: Communicator) -> None:
        (whole, arena), (later, other) = made(comm), made(comm)
        train(whole, arena, range(1, 6))
        later.load_state_dict(whole.state_dict())
        other.flat[...] = arena.flat
        train(whole, arena, range(6, STEPS))
        train(later, other, range(6, STEPS))
        assert other.flat.tobytes() == arena.flat.tobytes()

    run_threads(3, work)


def test_where_the_momentum_is_reset_the_parameters_are_where_the_force_has_left_them() -> None:
    """One worker moves by a gradient of -1 at rate 0.05: x = 0.05, and alpha is 0.8 of that."""
    arena = Arena({"x": np.zeros(1)}, solo())
    inner = optim.SGD(arena, lr=ETA, momentum=MOMENTUM, nesterov=True)
    training = EASGD(inner, 1, beta=BETA, look_ahead=True, state="reset")
    arena.grad["x"] -= 1.0
    training.step()
    np.testing.assert_allclose(arena["x"], ETA * (1 - BETA), rtol=1e-14)


def test_a_round_that_fails_leaves_the_parameters_where_they_were() -> None:
    def work(comm: Communicator) -> bool:
        training, arena = made(comm)
        train(training, arena, range(1, PERIOD))
        arena.grad.flat[:] += 1.0
        training.optim.step()
        before = arena.flat.copy()
        training.averager.step += comm.rank * PERIOD
        with pytest.raises(Exception, match="after step"):
            training.averager.average_parameters(arena)
        return arena.flat.tobytes() == before.tobytes()

    assert run_threads(2, work) == [True, True]


def test_where_a_number_is_not_finite_all_others_have_had_their_round() -> None:
    """Each keeps its own of that number, and nothing of the momentum is counted twice."""

    def work(comm: Communicator) -> tuple[list[float], list[float]]:
        found = []
        for spoilt in (False, True):
            training, arena = made(comm)
            train(training, arena, range(1, PERIOD))
            arena.grad.flat[:] += gradient(comm.rank, PERIOD, arena.flat)
            training.optim.step()
            if spoilt and comm.rank == 1:
                arena["a"][0] = np.nan
                with pytest.raises(NotFiniteError, match=r"'a' \(number 0\)"):
                    training.averager.average_parameters(arena)
            elif spoilt:
                with pytest.raises(NotFiniteError):
                    training.averager.average_parameters(arena)
            else:
                training.averager.average_parameters(arena)
            found.append(arena.flat[1:].tolist())
        return found[0], found[1]

    for whole, others in run_threads(2, work):
        np.testing.assert_allclose(others, whole, rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda a: optim.Adam(a, lr=0.1), TypeError, "look_ahead must have an optim.SGD, got a Ad"),
        (
            lambda a: optim.SGD(a, lr=0.1, momentum=0.9),
            ValueError,
            "with nesterov=True in every group, got momentum 0.9 without it",
        ),
    ],
)
def test_other_optimizers_are_refused_on_every_rank(
    make: Any, error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        good, bad = (Arena({"x": np.ones(3)}, comm) for _ in range(2))
        nesterov = optim.SGD(good, lr=0.1, momentum=0.9, nesterov=True)
        other = make(bad)
        EASGD(other if comm.rank == 1 else nesterov, 4, look_ahead=True)

    assert_named_by_all(outcomes(2, work), error, message, "look-aheads")
