"""C23 and C24: torch's schedulers set the rates of the inner optimizer, and groups may be added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler

import localsgd.torch as ours
from localsgd import run_threads
from torch_models import linear, train, wrapped


@pytest.mark.parametrize("loads", [0, 1])
def test_a_group_added_later_is_trained_and_averaged(loads: int) -> None:
    """C23 and B1: before and after a load."""

    def body(comm: Any) -> Any:
        first, later = (Parameter(torch.full((1,), float(comm.rank))) for _ in range(2))
        averager = ours.PeriodicModelAverager(2, 0, comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([first], lr=1.0), averager)
        optimizer.step()
        for _ in range(loads):
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.add_param_group({"params": [later]})
        assert len(optimizer.param_groups) == 2
        for _ in range(2):
            later.grad = torch.ones(1)
            optimizer.step()
        return later.item()

    assert run_threads(2, body) == [-1.5] * 2


SCHEDULERS: list[Callable[[Any], Any]] = [
    lambda optim: lr_scheduler.StepLR(optim, 1, gamma=0.5),
    lambda optim: lr_scheduler.MultiStepLR(optim, [1, 2]),
    lambda optim: lr_scheduler.ExponentialLR(optim, 0.5),
    lambda optim: lr_scheduler.CosineAnnealingLR(optim, 10),
    lambda optim: lr_scheduler.CosineAnnealingWarmRestarts(optim, 5),
    lambda optim: lr_scheduler.LambdaLR(optim, lambda epoch: 0.9**epoch),
    lambda optim: lr_scheduler.MultiplicativeLR(optim, lambda epoch: 0.9),
    lambda optim: lr_scheduler.LinearLR(optim),
    lambda optim: lr_scheduler.ConstantLR(optim),
    lambda optim: lr_scheduler.PolynomialLR(optim),
    lambda optim: lr_scheduler.OneCycleLR(optim, max_lr=1.0, total_steps=20),
    lambda optim: lr_scheduler.CyclicLR(optim, 0.01, 0.1, step_size_up=3),
    lambda optim: lr_scheduler.SequentialLR(
        optim, [lr_scheduler.ConstantLR(optim), lr_scheduler.ExponentialLR(optim, 0.5)], [2]
    ),
    lambda optim: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(optim)], optim),
]


@pytest.mark.parametrize("make", SCHEDULERS)
@pytest.mark.parametrize("loads", [0, 1])
def test_every_scheduler_changes_the_inner_learning_rate(make: Any, loads: int) -> None:
    """C24 and B1, B8: as on the plain optimizer, before and after a load."""
    model, optimizer = wrapped()
    twin = linear()
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(loads):
        train(model, optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        train(twin, plain)
    mine, theirs = make(optimizer), make(plain)
    for _ in range(4):
        train(model, optimizer)
        train(twin, plain)
        mine.step()
        theirs.step()
        assert optimizer.optim.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
        assert optimizer.optim.param_groups[0]["momentum"] == plain.param_groups[0]["momentum"]
    assert torch.equal(model.weight, twin.weight)


def test_plateaus_lower_the_inner_learning_rate() -> None:
    _, optimizer = wrapped()
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.optim.param_groups[0]["lr"] < 0.1


def test_two_schedulers_of_one_optimizer_do_what_they_do_to_a_plain_one() -> None:
    """One made of the wrapper and one of the inner optimizer: both factors apply."""
    _, optimizer = wrapped()
    plain = torch.optim.SGD(linear().parameters(), lr=0.1, momentum=0.9)
    found = []
    for first, second in ((optimizer, optimizer.optim), (plain, plain)):
        schedulers = [lr_scheduler.ExponentialLR(first, 0.5), lr_scheduler.StepLR(second, 2, 0.1)]
        rates = []
        for _ in range(5):
            first.step()
            for scheduler in schedulers:
                scheduler.step()
            rates.append(first.param_groups[0]["lr"])
        found.append(rates)
    assert found[0] == found[1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_optimizer_stepped_twice_a_batch_takes_and_counts_two_steps(size: int) -> None:
    """Worker r steps down by r + 1; rounds follow steps 2 and 4, the ends of both batches."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(2, 1, comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
        for _ in range(2):
            param.grad = torch.full((1,), 1.0 + comm.rank)
            optimizer.step()
            optimizer.step()
        return averager.step, param.item()

    assert run_threads(size, body) == [(4, -2.0 * (size + 1))] * size
