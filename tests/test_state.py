"""What a round does to the inner optimizers' state: trajectories by hand, errors, and saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, assert_named_by_all, gradient, initial_values, outcomes

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


def train(training: PostLocalSGDOptimizer, arena: Arena, first: int, last: int) -> np.ndarray:
    seen = []
    for step in range(first, last + 1):
        arena.grad.flat[...] = gradient(arena.comm.rank, step, arena.flat)
        training.step()
        seen.append(arena.flat.copy())
    return np.array(seen)


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


@pytest.mark.parametrize("policy", ["mean", "reset"])
def test_a_flush_treats_the_state_as_a_round(policy: Any) -> None:
    def work(comm: Communicator) -> tuple[list[float], int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.Adam(arena, lr=1.0, betas=(0.5, 0.5)), 9, state=policy)
        arena.grad["x"] += 2.0 * comm.rank
        training.step()
        training.flush()
        state = training.state.get("x", {})
        return [float(state[k][0]) for k in state if k != "step"], int(state.get("step", 0))

    expected = ([0.5, 1.0], 1) if policy == "mean" else ([], 0)
    assert run_threads(2, work) == [expected] * 2


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "Adagrad", "RMSprop", "Lion", "SGD"])
def test_identical_workers_keep_their_state_to_the_bit(kind: str) -> None:
    def work(comm: Communicator) -> list[bytes]:
        arena = Arena(initial_values(), comm)
        options = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
        training = LocalSGD(getattr(optim, kind)(arena, lr=0.01, **options), 2, state="mean")
        for step in range(1, 8):
            arena.grad.flat[...] = gradient(0, step, arena.flat)
            training.step()
        state = [array.tobytes() for named in training.state.values() for array in named.values()]
        return [arena.flat.tobytes(), *state]

    alone = run_threads(1, work)
    assert run_threads(3, work, hosts="2+1") == alone * 3


def test_state_is_averaged_where_it_lies() -> None:
    def work(comm: Communicator) -> bool:
        arena = Arena(initial_values(), comm)
        training = LocalSGD(optim.SGD(arena, lr=LR, momentum=0.9), 2, state="mean")
        train(training, arena, 1, 1)
        view = training.state["w"]["momentum_buffer"]
        train(training, arena, 2, 5)
        return np.shares_memory(view, training.state["w"]["momentum_buffer"])

    assert run_threads(2, work) == [True, True]


def test_several_dtypes_and_groups_are_averaged_in_one_round() -> None:
    """Buffers are the gradients r and 2r in the first step, so their means are 1 and 2."""

    def work(comm: Communicator) -> list[float]:
        wide = Arena({"w": np.zeros(2, np.float32)}, comm)
        narrow = Arena({"n": np.zeros(2, ml_dtypes.bfloat16)}, comm)
        inner = optim.SGD([wide, narrow], lr=1.0, momentum=0.5)
        training = LocalSGD(inner, 1, state="mean")
        later = Arena({"l": np.zeros(1)}, comm)
        training.add_param_group({"params": later, "momentum": 0.25})
        wide.grad.flat[...] = later.grad.flat[...] = comm.rank
        narrow.grad.flat[...] = 2 * comm.rank
        training.step()
        return [float(training.state[name]["momentum_buffer"][0]) for name in ("w", "n", "l")]

    assert run_threads(3, work, hosts="2+1") == [[1.0, 2.0, 1.0]] * 3


def test_a_worker_of_weight_0_without_state_takes_over_the_others() -> None:
    """Gradient 2 on rank 1 alone: m = 1, v = 2 with both rates ½; rank 0 goes on from there."""

    def work(comm: Communicator) -> tuple[int, float, float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.Adam(arena, lr=1.0, betas=(0.5, 0.5)), 9, state="mean")
        training.record_samples(comm.rank)
        if comm.rank:
            arena.grad["x"] += 2.0
            training.optim.step()
        training.flush()
        state = training.state["x"]
        return int(state["step"]), float(state["exp_avg"][0]), float(state["exp_avg_sq"][0])

    assert run_threads(2, work) == [(1, 1.0, 2.0)] * 2


def test_a_worker_that_has_not_stepped_gives_zero_momentum() -> None:
    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0, momentum=0.5), 9, state="mean")
        if comm.rank:
            arena.grad["x"] += 3.0
            training.optim.step()
        training.flush()
        return float(training.state["x"]["momentum_buffer"][0])

    assert run_threads(3, work) == [2.0] * 3


def test_an_empty_group_has_no_state_to_average() -> None:
    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        groups = [{"params": arena.subset([])}, {"params": arena}]
        training = LocalSGD(optim.SGD(groups, lr=1.0, momentum=0.5), 1, comm=comm, state="mean")
        arena.grad["x"] -= 1.0 + 2.0 * comm.rank
        training.step()
        return [*arena["x"].tolist(), *training.state["x"]["momentum_buffer"].tolist()]

    assert run_threads(2, work) == [[2.0, -2.0]] * 2


def test_where_nobody_has_state_none_is_made() -> None:
    """So the first step is still the first, in which momentum starts undampened."""

    def work(comm: Communicator) -> tuple[int, float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        inner = optim.SGD(arena, lr=1.0, momentum=0.5, dampening=0.75)
        training = LocalSGD(inner, 9, state="mean")
        training.flush()
        before = len(training.state)
        arena.grad["x"] += 1.0
        training.step()
        return before, float(training.state["x"]["momentum_buffer"][0])

    assert run_threads(2, work) == [(0, 1.0)] * 2


def test_unequal_steps_are_an_error_on_every_rank_before_anything_changes() -> None:
    def work(comm: Communicator) -> tuple[str, bool, int]:
        arena = Arena({"x": np.zeros(2), "y": np.zeros(1)}, comm)
        training = LocalSGD(optim.Adam(arena, lr=1.0), 2, state="mean")
        for _ in range(1 + comm.rank // 2):
            arena.grad.flat[...] = comm.rank + 1.0
            training.optim.step()
        values = arena.flat.copy()
        with pytest.raises(MismatchError) as caught:
            training.flush()
        return str(caught.value), arena.flat.tobytes() == values.tobytes(), training.averager.step

    for words, unchanged, step in run_threads(3, work, hosts="2+1"):
        assert words == (
            "with policy 'mean' the state must have seen equally many steps on every rank, got for "
            "Adam (exp_avg, exp_avg_sq) of parameter 'x' and 1 more 1 on rank 0, 1 on rank 1, "
            "2 on rank 2"
        )
        assert unchanged
        assert step == 0


class Unaveraged(optim.SGD):
    means_state = False


def test_an_optimizer_whose_state_has_no_mean_is_refused_on_every_rank() -> None:
    def work(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1)}, comm)
        kind = Unaveraged if comm.rank == 1 else optim.SGD
        LocalSGD(kind(arena, lr=1.0), 2, state="mean")

    message = "state 'mean' must have an optimizer whose state has a mean, got Unaveraged"
    assert_named_by_all(outcomes(3, work), ValueError, message, "options")


def test_policies_must_be_known_and_equal_on_all_ranks() -> None:
    def work(comm: Communicator) -> None:
        inner = optim.SGD(Arena({"x": np.zeros(1)}, comm), lr=1.0)
        LocalSGD(inner, 2, state="mean" if comm.rank else "reset")

    for outcome in outcomes(2, work):
        assert isinstance(outcome, MismatchError)
        assert "state='reset' on rank 0; state='mean' on rank 1" in str(outcome)
    inner = optim.SGD(Arena({"x": np.zeros(1)}, solo()), lr=1.0)
    with pytest.raises(ValueError, match="one of local, mean, reset, got 'average'"):
        LocalSGD(inner, 2, state="average")  # type: ignore[arg-type]


def test_an_averager_of_another_kind_takes_parameters_alone() -> None:
    class Counter:
        step = 0

        def average_parameters(self, params: Any) -> None:
            self.step += 1

    inner = optim.SGD(Arena({"x": np.zeros(1)}, solo()), lr=1.0)
    with pytest.raises(TypeError, match=r"must have an averager of localsgd\.averagers"):
        PostLocalSGDOptimizer(inner, Counter(), state="reset")


def test_a_rank_that_hands_over_nothing_is_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> bool:
        arena = Arena({"x": np.full(1, float(comm.rank))}, comm, start="keep")
        averager = ModelAverager(every(1), comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager, state="reset")
        step = (lambda: averager.average_parameters(arena)) if comm.rank else training.step
        with pytest.raises(MismatchError, match="reset state"):
            step()
        return arena["x"].tolist() == [float(comm.rank)]

    assert run_threads(2, work) == [True, True]


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
        saved, values = half.state_dict(), {name: array.copy() for name, array in arena.items()}
        resumed, arena = build(comm)
        resumed.load_state_dict(saved)
        for name, array in values.items():
            arena[name] = array
        rest = train(resumed, arena, saved_at + 1, STEPS)
        return rest.tobytes() == whole[saved_at:].tobytes()

    assert run_threads(3, work, hosts="2+1") == [True] * 3
