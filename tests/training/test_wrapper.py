"""Every member of the wrapper: closures, groups, saving, what it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    every,
    lr,
    optim,
    run_threads,
    solo,
)
from workers import begin, initial_values, outcomes, train


def build() -> tuple[PostLocalSGDOptimizer, Arena, ModelAverager]:
    arena = Arena(initial_values(), solo())
    averager = PeriodicModelAverager(4, warmup_steps=10, comm=solo())
    return PostLocalSGDOptimizer(optim.SGD(arena, lr=0.5, momentum=0.5), averager), arena, averager


def test_step_returns_the_loss_of_the_closure() -> None:
    training, arena, averager = build()

    def closure() -> float:
        arena.grad["b"] += 1.0
        return 7.5

    assert training.step(closure) == 7.5
    assert arena["b"].tolist() == [0.0, -0.75]
    assert training.step() is None
    assert averager.step == 2


def test_state_and_groups_are_read_through() -> None:
    training, arena, _ = build()
    inner = training.optim
    train(training, arena, 1, 1)
    assert training.state is inner.state
    assert training.param_groups is inner.param_groups
    with pytest.raises(AttributeError):
        training.state = {}  # type: ignore[misc]
    training.param_groups[0]["lr"] = 0.25
    assert inner.param_groups[0]["lr"] == 0.25


def test_groups_stay_shared_after_a_load() -> None:
    training, arena, _ = build()
    training.load_state_dict(training.state_dict())
    training.param_groups[0]["lr"] = 0.0
    before = arena.flat.copy()
    train(training, arena, 1, 1)
    assert arena.flat.tobytes() == before.tobytes()
    assert training.param_groups is training.optim.param_groups


def test_a_group_added_after_a_load_is_trained_and_averaged() -> None:
    def work(comm: Communicator) -> list[float]:
        first, second = Arena({"w": np.zeros(1)}, comm), Arena({"b": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(first, lr=0.5), period=2)
        training.load_state_dict(training.state_dict())
        training.add_param_group({"params": second, "lr": 1.0})
        for _ in range(2):
            first.grad.flat[...] = second.grad.flat[...] = comm.rank
            training.step()
        return [float(first["w"][0]), float(second["b"][0])]

    assert run_threads(3, work) == [[-1.0, -2.0]] * 3


def test_zero_grad_is_forwarded() -> None:
    training, arena, _ = build()
    arena.grad.flat[...] = 1.0
    training.zero_grad()
    assert arena.grad.flat.tolist() == [0.0] * 8


def test_repr_shows_inner_optimizer_averager_and_step() -> None:
    training, arena, _ = build()
    train(training, arena, 1, 3)
    words = repr(training)
    assert words.startswith("PostLocalSGDOptimizer(SGD(lr=0.5, momentum=0.5")
    assert words.endswith("PeriodicModelAverager(post_local(4, warmup_steps=10)), step=3)")


def test_a_state_dict_has_the_inner_one_the_step_and_the_averagers() -> None:
    training, arena, averager = build()
    train(training, arena, 1, 3)
    averager.record_samples(5)
    saved = training.state_dict()
    assert set(saved) == {"state", "param_groups", "step", "averager"}
    assert saved["step"] == 3
    assert saved["averager"]["samples"] == [5]
    other, _, other_averager = build()
    other.load_state_dict(saved)
    assert other_averager.step == 3
    np.testing.assert_equal(other.state_dict(), saved)


def test_a_state_dict_without_a_step_counter_warns_at_the_callers_line_and_starts_at_0() -> None:
    training, arena, averager = build()
    train(training, arena, 1, 3)
    saved = training.optim.state_dict()
    with pytest.warns(
        UserWarning,
        match="Loaded state dict does not contain a step counter for an averager. "
        "Setting step counter to 0.",
    ) as caught:
        training.load_state_dict(saved)
    assert caught[0].filename == __file__
    assert averager.step == 0
    assert "step" not in saved


def test_samples_from_before_a_load_without_an_averagers_state_weigh_no_more() -> None:
    """The 98 samples that rank 1 saw more are gone: the mean of 0 and -2 is plain."""

    def work(comm: Communicator) -> list[float]:
        training, arena = begin(comm, 1)
        saved = {**training.optim.state_dict(), "step": 0}
        training.record_samples(1 + 98 * comm.rank)
        training.load_state_dict(saved)
        training.record_samples(1)
        arena.grad["x"] += 2.0 * comm.rank
        training.step()
        return arena["x"].tolist()

    assert run_threads(2, work) == [[-1.0]] * 2


def test_a_wrapped_state_dict_loads_into_the_plain_optimizer() -> None:
    training, arena, _ = build()
    train(training, arena, 1, 3)
    plain = optim.SGD(Arena(initial_values(), solo()), lr=0.1)
    plain.load_state_dict(training.state_dict())
    assert plain.param_groups == training.param_groups
    np.testing.assert_equal(plain.state_dict()["state"], training.optim.state_dict()["state"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"step": "3"}, TypeError),
        ({"step": -1}, ValueError),
        ({"step": 2.0}, TypeError),
        ({"averager": {"step": 3}}, ValueError),
        ({"param_groups": []}, ValueError),
        ({"state": {"other": {}}}, ValueError),
    ],
)
def test_a_failing_load_changes_nothing(change: dict[str, Any], error: type[Exception]) -> None:
    training, arena, averager = build()
    train(training, arena, 1, 3)
    averager.record_samples(5)
    saved = training.state_dict()
    saved["param_groups"][0]["lr"] = 9.0
    saved["averager"]["samples"] = [77]
    before = training.state_dict()
    with pytest.raises(error):
        training.load_state_dict({**saved, "step": 9, **change})
    np.testing.assert_equal(training.state_dict(), before)


def test_any_averager_with_a_step_and_average_parameters_works() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.step = 0
            self.seen: list[Any] = []

        def average_parameters(self, params: Any) -> None:
            self.seen.append([arena.flat.tolist() for arena in params])
            self.step += 1

    arena = Arena({"x": np.ones(1)}, solo())
    recorder = Recorder()
    training = PostLocalSGDOptimizer(optim.SGD(arena, lr=0.5), recorder)
    arena.grad["x"] += 1.0
    training.step()
    training.step()
    assert recorder.seen == [[[0.5]], [[0.5]]]
    saved = training.state_dict()
    assert saved["step"] == 2
    assert "averager" not in saved
    recorder.step = 7
    training.load_state_dict(saved)
    assert recorder.step == 2


def test_both_parts_are_checked() -> None:
    sgd = optim.SGD(Arena({"x": np.ones(1)}, solo()), lr=0.5)
    with pytest.raises(TypeError, match="averager must have step and average_parameters"):
        PostLocalSGDOptimizer(sgd, every(4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"an optimizer of localsgd\.optim, got None"):
        PostLocalSGDOptimizer(None, ModelAverager(every(1), solo()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optim must be an optimizer"):
        LocalSGD(None, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("period", "synchronous", "error"),
    [(0, 0, ValueError), (2.5, 0, TypeError), (4, -1, ValueError), (4, True, TypeError)],
)
def test_local_sgd_refuses_invalid_numbers_and_names_the_rank_elsewhere(
    period: Any, synchronous: Any, error: type[Exception]
) -> None:
    def work(comm: Communicator) -> LocalSGD:
        sgd = optim.SGD(Arena({"x": np.ones(1)}, comm), lr=0.5)
        if comm.rank == 0:
            return LocalSGD(sgd, 4)
        return LocalSGD(sgd, period, synchronous_steps=synchronous)

    other, own = outcomes(2, work)
    assert type(own) is error
    assert isinstance(other, MismatchError)
    assert "got on rank 1" in str(other)


def test_local_sgd_flushes_and_evaluates_the_mean() -> None:
    def work(comm: Communicator) -> None:
        training, arena = begin(comm, period=8)
        arena.grad["x"] += comm.rank
        training.step()
        assert training.mean()["x"].tolist() == [-1.0]
        assert arena["x"].tolist() == [-comm.rank]
        training.flush()
        assert arena["x"].tolist() == [-1.0]
        assert training.averager.step == 1

    run_threads(3, work)


def test_workers_train_in_groups_of_their_own() -> None:
    def work(comm: Communicator) -> float:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 1, comm=comm.split(comm.rank // 2))
        arena.grad["x"] += comm.rank
        training.step()
        return float(arena["x"][0])

    assert run_threads(4, work) == [-0.5, -0.5, -2.5, -2.5]


def test_options_of_some_ranks_only_are_an_error_on_every_rank_at_once() -> None:
    def work(comm: Communicator) -> None:
        inner = optim.SGD(Arena({"x": np.zeros(1)}, comm), lr=1.0)
        LocalSGD(inner, 2, comm=comm, rate=lr.constant() if comm.rank == 1 else None)

    for outcome in outcomes(3, work, hosts="2+1"):
        assert isinstance(outcome, MismatchError)
        assert "got rate=None on ranks 0, 2; rate=constant(1.0) on rank 1" in str(outcome)
