"""What a round does to the inner optimizers' state: by hand, where it lies, and errors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    run_threads,
    solo,
)
from workers import assert_named_by_all, gradient, initial_values, outcomes, train


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
        training = LocalSGD(optim.SGD(arena, lr=0.1, momentum=0.9), 2, state="mean")
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
