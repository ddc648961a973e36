"""What a round does to the inner optimizers' state: training against formulas, and resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    LocalSGD,
    PostLocalSGDOptimizer,
    optim,
    run_threads,
)
from workers import LAYOUTS, continued, gradient, initial_values, train

STEPS, LR = 10, 0.1
Groups = Callable[[int], Sequence[Sequence[int]]]


def written_out(
    size: int, adam: bool, policy: str, groups_after: Groups, weights: Sequence[float]
) -> list[np.ndarray]:
    """After every step the workers' parameters: SGD with momentum 0.9, or Adam, as in papers."""
    start = np.concatenate([array.reshape(-1) for array in initial_values().values()])
    params, first, second = (np.tile(start, (size, 1)) * factor for factor in (1.0, 0.0, 0.0))
    counts = np.zeros(size, int)
    history = []
    for step in range(1, STEPS + 1):
        for rank in range(size):
            grad = gradient(rank, step, params[rank])
            counts[rank] += 1
            if adam:
                first[rank] = 0.9 * first[rank] + 0.1 * grad
                second[rank] = 0.999 * second[rank] + 0.001 * grad**2
                m = first[rank] / (1 - 0.9 ** counts[rank])
                v = second[rank] / (1 - 0.999 ** counts[rank])
                params[rank] -= LR * m / (np.sqrt(v) + 1e-8)
            else:
                first[rank] = 0.9 * first[rank] + grad
                params[rank] -= LR * first[rank]
        for ranks in groups_after(step):
            shares = np.array([weights[rank] for rank in ranks])
            for values in (params, first, second) if policy == "mean" else (params,):
                values[ranks] = shares @ values[ranks] / shares.sum()
            if policy == "reset":
                first[ranks] = second[ranks] = counts[ranks] = 0
        history.append(params.copy())
    return history


def make(arena: Any, adam: bool) -> optim.Optimizer:
    return optim.Adam(arena, lr=LR) if adam else optim.SGD(arena, lr=LR, momentum=0.9)


@pytest.mark.parametrize("policy", ["local", "mean", "reset"])
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_training_equals_the_written_out_reference_after_every_step(
    size: int, hosts: str, adam: bool, policy: Any
) -> None:
    """Rank r sees r+1 samples a step, so both parameters and state weigh it by r+1."""

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena(initial_values(), comm)
        training = LocalSGD(make(arena, adam), period=3, state=policy)
        seen = []
        for step in range(1, STEPS + 1):
            training.record_samples(comm.rank + 1)
            seen.append(train(training, arena, step, step)[0])
        return np.array(seen)

    everyone = [list(range(size))]
    expected = written_out(
        size,
        adam,
        policy,
        lambda step: everyone if step % 3 == 0 else [],
        [rank + 1.0 for rank in range(size)],
    )
    seen = np.stack(run_threads(size, work, hosts=hosts), axis=1)
    np.testing.assert_allclose(seen, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["mean", "reset"])
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_rounds_of_every_level_treat_the_state(adam: bool, policy: Any) -> None:
    hosts = [[0, 1], [2]]

    def work(comm: Communicator) -> np.ndarray:
        arena = Arena(initial_values(), comm)
        averager = HierarchicalModelAverager({2: "host", 6: "world"}, comm=comm)
        training = PostLocalSGDOptimizer(make(arena, adam), averager, state=policy)
        return train(training, arena, 1, STEPS)

    def groups_after(step: int) -> Sequence[Sequence[int]]:
        if step % 6 == 1:
            return [[0, 1, 2]]
        return hosts if step % 2 == 1 else []

    expected = written_out(3, adam, policy, groups_after, [1.0] * 3)
    seen = np.stack(run_threads(3, work, hosts="2+1"), axis=1)
    np.testing.assert_allclose(seen, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["local", "mean", "reset"])
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("saved_at", [2, 3, 4])
def test_resuming_equals_never_stopping_to_the_bit(adam: bool, policy: Any, saved_at: int) -> None:
    def build(comm: Communicator) -> tuple[LocalSGD, Arena]:
        arena = Arena(initial_values(), comm)
        return LocalSGD(make(arena, adam), 3, state=policy), arena

    def work(comm: Communicator) -> bool:
        straight, arena = build(comm)
        whole = train(straight, arena, 1, STEPS)
        half, arena = build(comm)
        train(half, arena, 1, saved_at)
        resumed, arena = continued(half, arena, build)
        rest = train(resumed, arena, saved_at + 1, STEPS)
        return rest.tobytes() == whole[saved_at:].tobytes()

    assert run_threads(3, work, hosts="2+1") == [True] * 3
