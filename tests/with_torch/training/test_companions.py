"""C32 and C33: what becomes of buffers and optimizer state in a round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo

RARELY = 1_000_000


def averager_of(comm: Any, period: int = RARELY) -> ours.PeriodicModelAverager:
    return ours.PeriodicModelAverager(period, 0, comm)


def test_options_are_checked_on_every_rank() -> None:
    def body(comm: Any) -> None:
        param = Parameter(torch.zeros(1))

        def made(inner: Any, **options: Any) -> Any:
            return ours.PostLocalSGDOptimizer(inner, averager_of(comm), **options)

        sgd = torch.optim.SGD([param], lr=0.1)
        with pytest.raises(ValueError, match="'mean' must have .* got Rprop"):
            made(torch.optim.Rprop([param]), state="mean")
        with pytest.raises(ValueError, match="state must be one of local, mean, reset"):
            made(sgd, state="average")
        with pytest.raises(TypeError, match="buffers must be"):
            made(sgd, buffers=[])
        with pytest.raises(MismatchError, match="state='mean' on rank 0; state='reset' on rank 1"):
            made(sgd, state=["mean", "reset"][comm.rank])

    run_threads(2, body)


def test_options_need_an_averager_of_ours() -> None:
    class Counter:
        step = 0

        def average_parameters(self, params: Any) -> None: ...

    inner = torch.optim.SGD([Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TypeError, match="must have an averager of localsgd"):
        ours.PostLocalSGDOptimizer(inner, Counter(), state="mean")
    optimizer = ours.PostLocalSGDOptimizer(inner, averager_of(solo()), state="reset")
    with pytest.raises(TypeError, match="make another and load"):
        copy.deepcopy(optimizer)


class Halfway(localsgd.ModelAverager):
    """Somebody's own averager of the core: every worker keeps half of its own value."""

    mix = 0.5


def test_a_subclass_of_the_cores_averager_works_in_one_line_with_every_option() -> None:
    """Values 0 and 2: mean 1, half-way 0.5 and 1.5."""

    def body(comm: Any) -> Any:
        model = nn.BatchNorm1d(1)
        adopted = ours.adopt(model, comm)
        with torch.no_grad():
            model.weight.fill_(2.0 * comm.rank)
        model.running_mean.fill_(2.0 * comm.rank)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            Halfway(localsgd.every(1), comm),
            state="mean",
            buffers=adopted.buffers,
        )
        optimizer.step()
        return model.weight.item(), model.running_mean.item(), optimizer.averager.step

    assert run_threads(2, body) == [(0.5, 1.0, 1), (1.5, 1.0, 1)]


def test_a_step_left_out_takes_part_in_the_averaging_of_gradients() -> None:
    """Gradients 1, 2, 3; rank 1 leaves out a step: all take (1 + 3) / 2 and then stay equal."""

    def body(comm: Any) -> Any:
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        stage = ours.GradientStage(model, averager)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), averager, gradients=stage
        )
        if comm.rank == 1:
            optimizer.skip_step()
        else:
            model(torch.full((1, 1), 1.0 + comm.rank)).sum().backward()
            optimizer.step()
        return model.weight.item(), averager.step

    assert run_threads(3, body) == [(-2.0, 1)] * 3
