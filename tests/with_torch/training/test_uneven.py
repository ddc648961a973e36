"""C38: workers that run out of data early; torch's DDP aborts, and its averagers hang."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import localsgd
import localsgd.torch as ours
from localsgd import RankFailure, run_threads

RARELY = 1_000_000


def model_at_0() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    return model


def trained(
    comm: Any, averager: Any, batches: int, *, samples: bool = False, **options: Any
) -> Any:
    """Steps of -1 for every batch, whose gradient is 1 plus the rank in the gradient stage."""
    model = model_at_0()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    if options.pop("stage", False):
        options["gradients"] = ours.GradientStage(model, averager)
    optimizer = ours.PostLocalSGDOptimizer(inner, averager, **options)
    value = 1.0 + comm.rank if "gradients" in options else 1.0
    with optimizer.uneven():
        for _ in range(batches):
            optimizer.zero_grad()
            if samples:
                averager.record_samples(1)
            model(torch.full((1, 1), value)).sum().backward()
            optimizer.step()
    return model.weight.item(), averager.step


@pytest.mark.parametrize("hosts", ["4", "2+2", "3+1", "2+1+1"])
@pytest.mark.parametrize("period", [3, RARELY])
def test_shards_of_any_size_end_equal_and_at_the_step_of_the_longest(
    hosts: str, period: int
) -> None:
    """Batches 0, 1, 4 and 6."""

    def body(comm: Any) -> Any:
        averager = ours.PeriodicModelAverager(period, 2, comm)
        return trained(comm, averager, [0, 1, 4, 6][comm.rank])

    found = run_threads(4, body, hosts=hosts)
    assert all(each == found[0] for each in found)
    assert found[0][1] == 6


def test_the_last_round_weighs_the_samples() -> None:
    """Nobody averages before the end: 1, 2 and 5 steps of -1; (1·1 + 2·2 + 5·5) / 8 = 3.75."""

    def body(comm: Any) -> Any:
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        return trained(comm, averager, [1, 2, 5][comm.rank], samples=True)

    assert run_threads(3, body) == [(-3.75, 5)] * 3


def test_gradients_are_averaged_among_those_that_have_data() -> None:
    """Gradients 1 and 2 for two steps, then 2 alone: -1.5, -3, -5 on both."""

    def body(comm: Any) -> Any:
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        return trained(comm, averager, [2, 3][comm.rank], stage=True)

    assert run_threads(2, body) == [(-5.0, 3)] * 2


def test_a_worker_without_data_takes_the_steps_of_the_others_gradients() -> None:
    """Gradients 1.5, 2 and 2, momentum 0.5: 1.5, 2.75 and 3.375 on both."""

    def body(comm: Any) -> Any:
        model = model_at_0()
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        stage = ours.GradientStage(model, averager)
        inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager, gradients=stage)
        with optimizer.uneven():
            for _ in range(1 + 2 * comm.rank):
                optimizer.zero_grad()
                model(torch.full((1, 1), 1.0 + comm.rank)).sum().backward()
                optimizer.step()
        return inner.state[model.weight]["momentum_buffer"].item(), model.weight.item()

    assert run_threads(2, body) == [(3.375, -7.625)] * 2


def test_a_worker_without_data_gives_what_it_has_once() -> None:
    """Rounds after every step: together at -1, then the other goes on alone to -3."""

    def body(comm: Any) -> Any:
        averager = ours.CoreAverager(localsgd.ModelAverager(localsgd.every(1), comm))
        return trained(comm, averager, [1, 3][comm.rank])

    assert run_threads(2, body) == [(-3.0, 3)] * 2


def test_a_hierarchy_with_state_and_gradients_ends_cleanly() -> None:
    def body(comm: Any) -> Any:
        averager = ours.HierarchicalModelAverager({2: "host", 4: "world"}, 3, comm)
        return trained(comm, averager, [7, 0, 2, 5][comm.rank], stage=True, state="mean")

    found = run_threads(4, body, hosts="2+2")
    assert all(each == found[0] for each in found)
    assert found[0][1] == 7


def test_equal_shards_are_as_without() -> None:
    """The last round leaves out nothing: a plain flush after six steps."""

    def body(comm: Any) -> Any:
        averager = ours.PeriodicModelAverager(4, 0, comm)
        return trained(comm, averager, 6)

    assert run_threads(2, body) == [(-6.0, 6)] * 2


def test_a_flush_in_between_is_answered() -> None:
    """Rank 1 has no data and takes what rank 0 flushes after one step of two."""

    def body(comm: Any) -> Any:
        model = model_at_0()
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager)
        with optimizer.uneven():
            for step in range(2 * (comm.rank == 0)):
                model.weight.grad = torch.ones(1, 1)
                optimizer.step()
                if step == 0:
                    optimizer.flush()
        return model.weight.item(), averager.step

    assert run_threads(2, body) == [(-2.0, 2)] * 2


def test_gradients_averaged_twice_in_a_step_are_refused() -> None:
    def body(comm: Any) -> None:
        model = model_at_0()
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        stage = ours.GradientStage(model, averager)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager, gradients=stage)

        def two_passes() -> None:
            with optimizer.uneven():
                for _ in range(2):
                    model(torch.ones(1, 1)).sum().backward()

        with pytest.raises(ValueError, match="once a step"):
            two_passes()

    run_threads(2, body)


def test_a_worker_that_fails_does_not_leave_others_waiting() -> None:
    def body(comm: Any) -> None:
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        inner = torch.optim.SGD(model_at_0().parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager)
        if comm.rank == 1:
            with optimizer.uneven():
                raise ArithmeticError("a batch could not be read")
        with pytest.raises(RankFailure), optimizer.uneven():
            pass

    with pytest.raises(ArithmeticError, match="a batch"):
        run_threads(2, body)


def test_entering_twice_or_with_somebodys_averager_is_refused() -> None:
    def body(comm: Any) -> None:
        averager = ours.PeriodicModelAverager(RARELY, 0, comm)
        inner = torch.optim.SGD(model_at_0().parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager)
        with optimizer.uneven(), pytest.raises(ValueError, match="twice"), optimizer.uneven():
            pass

    run_threads(1, body)

    class Counter:
        step = 0

        def average_parameters(self, params: Any) -> None: ...

    inner = torch.optim.SGD(model_at_0().parameters(), lr=1.0)
    with (
        pytest.raises(TypeError, match="averager of localsgd"),
        ours.PostLocalSGDOptimizer(inner, Counter()).uneven(),
    ):
        pass
