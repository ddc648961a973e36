"""Learning rates: values worked out by hand, and that they reach the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import Arena, LocalSGD, lr, optim, solo


def values(rate: lr.Rate, steps: int, initial: float = 8.0) -> list[float]:
    return [round(rate.at(step, initial), 9) for step in range(steps)]


def test_rates_by_hand() -> None:
    assert values(lr.constant(0.5), 2) == [4.0, 4.0]
    assert values(lr.decay(2, 0.5), 5) == [8.0, 8.0, 4.0, 4.0, 2.0]
    assert values(lr.milestones([1, 3], 0.25), 5) == [8.0, 2.0, 2.0, 0.5, 0.5]
    assert values(lr.linear(4, 0.5), 6) == [4.0, 5.0, 6.0, 7.0, 8.0, 8.0]
    assert values(lr.linear(2, 1.0, 0.0), 4) == [8.0, 4.0, 0.0, 0.0]
    assert values(lr.cosine(2, minimum=2.0), 4) == [8.0, 5.0, 2.0, 2.0]
    assert values(lr.from_function(lambda step: 1 / (step + 1)), 4) == [8.0, 4.0, 2.666666667, 2.0]


def test_one_cycle_rises_and_falls_on_the_cosine() -> None:
    """Of 7 steps: step 2.5 would be the top (0.5·7 - 1); quarter waves by hand at both ends."""
    rate = lr.one_cycle(6, rising=0.5, start_divisor=4.0, end_divisor=2.0)
    rise = 2 + 6 * (1 - np.cos(np.pi / 2)) / 2
    fall = [1 + 7 * (1 + np.cos(np.pi * share)) / 2 for share in (1 / 3, 2 / 3)]
    np.testing.assert_allclose(values(rate, 8), [2, rise, 8, *fall, 1, 1, 1], rtol=1e-8)


def test_a_chain_counts_every_rate_from_its_own_start() -> None:
    rate = lr.chain([lr.linear(2, 0.0), lr.constant(), lr.decay(1, 0.5)], starts=[2, 4])
    assert values(rate, 8) == [0.0, 4.0, 8.0, 8.0, 8.0, 4.0, 2.0, 1.0]


def test_a_rate_can_be_asked_in_any_order() -> None:
    rate = lr.chain([lr.linear(3, 0.1), lr.cosine(5)], starts=[3])
    forwards = values(rate, 9)
    assert [round(rate.at(step, 8.0), 9) for step in reversed(range(9))] == forwards[::-1]


def test_words_show_the_numbers() -> None:
    rate = lr.chain([lr.linear(3, 0.1), lr.cosine(5)], starts=[3])
    assert repr(rate) == (
        "chain([linear(3, start=0.1, end=1.0), cosine(5, minimum=0.0)], starts=[3])"
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lr.decay(0), ValueError, "every must be at least 1"),
        (lambda: lr.decay(2, float("nan")), ValueError, "gamma must be finite"),
        (lambda: lr.milestones([3, 3]), ValueError, r"steps must ascend, got \[3, 3\]"),
        (lambda: lr.linear(2.5, 0.1), TypeError, "steps must be an integer"),
        (lambda: lr.cosine(4, minimum=-1.0), ValueError, "minimum must be at least 0"),
        (lambda: lr.one_cycle(4, rising=1.5), ValueError, "rising must be at most 1, got 1.5"),
        (lambda: lr.one_cycle(4, end_divisor=0), ValueError, "end_divisor must be above 0"),
        (lambda: lr.from_function(3), TypeError, "factor must be a function of the step, got 3"),
        (lambda: lr.chain([lr.constant()], [3]), ValueError, r"one fewer than the 1 rates"),
        (lambda: lr.chain([lr.constant(), 3], [3]), TypeError, r"must have at\(step, initial\)"),
    ],
)
def test_invalid_rates_are_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def optimizer() -> optim.SGD:
    arena = Arena({"w": np.zeros(2), "b": np.zeros(1)}, solo())
    groups = [{"params": arena.subset("w")}, {"params": arena.subset("b"), "lr": 4.0}]
    return optim.SGD(groups, lr=8.0)


def rates(sgd: optim.SGD) -> list[float]:
    return [group["lr"] for group in sgd.param_groups]


def test_a_scheduler_sets_every_groups_rate_from_its_own_initial_one() -> None:
    sgd = optimizer()
    scheduler = lr.Scheduler(sgd, lr.linear(2, 0.5))
    seen = [rates(sgd)]
    for _ in range(3):
        scheduler.step()
        seen.append(rates(sgd))
    assert seen == [[4.0, 2.0], [6.0, 3.0], [8.0, 4.0], [8.0, 4.0]]


def test_a_resumed_scheduler_goes_on_where_it_stopped() -> None:
    sgd, other = optimizer(), optimizer()
    scheduler = lr.Scheduler(sgd, lr.decay(1, 0.5))
    scheduler.step()
    scheduler.step()
    resumed = lr.Scheduler(other, lr.decay(1, 0.5))
    other.load_state_dict(sgd.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert rates(other) == [2.0, 1.0]
    resumed.step()
    assert rates(other) == [1.0, 0.5]


def test_a_scheduler_refuses_what_is_no_rate_and_no_position() -> None:
    with pytest.raises(TypeError, match=r"rate must have at\(step, initial\)"):
        lr.Scheduler(optimizer(), 0.1)  # type: ignore[arg-type]
    scheduler = lr.Scheduler(optimizer(), lr.constant())
    with pytest.raises(ValueError, match="must have 'last_step'"):
        scheduler.load_state_dict({})
    with pytest.raises(ValueError, match="last_step must be at least 0"):
        scheduler.load_state_dict({"last_step": -1})


def training_at(value: float, rate: lr.Rate | None = None) -> tuple[LocalSGD, Arena]:
    arena = Arena({"w": np.full(1, value)}, solo())
    return LocalSGD(optim.SGD(arena, lr=8.0), period=2, rate=rate), arena


def steps_with(
    training: LocalSGD, arena: Arena, scheduler: lr.Scheduler, count: int
) -> list[float]:
    seen = []
    for _ in range(count):
        arena.grad["w"] += 1.0
        training.step()
        scheduler.step()
        seen.append(float(arena["w"][0]))
    return seen


def test_a_scheduler_on_the_wrapper_sets_the_rates_of_its_steps() -> None:
    """Gradient 1 at rates 8, 4, 2, 1 from 0."""
    training, arena = training_at(0.0)
    scheduler = lr.Scheduler(training, lr.decay(1, 0.5))
    assert steps_with(training, arena, scheduler, 4) == [-8.0, -12.0, -14.0, -15.0]


@pytest.mark.parametrize("made", ["before the load", "after the load"])
def test_a_scheduler_on_the_wrapper_goes_on_after_a_load(made: str) -> None:
    """Rates 8 and 4 to -12, saved in mid-training; then 2 and 1, as if never stopped."""
    training, arena = training_at(0.0)
    scheduler = lr.Scheduler(training, lr.decay(1, 0.5))
    steps_with(training, arena, scheduler, 2)
    saved, position = training.state_dict(), scheduler.state_dict()

    resumed, arena = training_at(-12.0)
    if made == "before the load":
        scheduler = lr.Scheduler(resumed, lr.decay(1, 0.5))
    resumed.load_state_dict(saved)
    if made == "after the load":
        scheduler = lr.Scheduler(resumed, lr.decay(1, 0.5))
    scheduler.load_state_dict(position)
    assert resumed.param_groups[0]["lr"] == 2.0
    assert steps_with(resumed, arena, scheduler, 2) == [-14.0, -15.0]


@pytest.mark.parametrize("given", ["before the load", "after the load"])
def test_a_rate_given_to_the_wrapper_counts_the_averagers_steps(given: str) -> None:
    """Linear from 8 to 0 in 4 steps; resumed after 2 with nothing but the training's state."""

    def steps(training: LocalSGD, arena: Arena, count: int) -> float:
        for _ in range(count):
            arena.grad["w"] += 1.0
            training.step()
        return float(arena["w"][0])

    rate = lr.linear(4, 1.0, 0.0)
    training, arena = training_at(0.0, rate)
    assert steps(training, arena, 2) == -14.0
    resumed, arena = training_at(-14.0, rate if given == "before the load" else None)
    resumed.load_state_dict(training.state_dict())
    resumed.rate = rate
    assert steps(resumed, arena, 1) == -18.0
    resumed.skip_step()
    assert steps(resumed, arena, 1) == -18.0


def test_a_new_rate_after_a_load_starts_from_the_rate_that_groups_were_made_with() -> None:
    training, arena = training_at(0.0)
    steps_with(training, arena, lr.Scheduler(training, lr.decay(1, 0.5)), 3)
    resumed, _ = training_at(0.0)
    resumed.load_state_dict(training.state_dict())
    lr.Scheduler(resumed, lr.constant(0.25))
    assert resumed.param_groups[0]["lr"] == 2.0
