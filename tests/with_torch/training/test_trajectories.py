"""C17: whole trainings, against torch's in the same processes, and written out by hand.

Every rank has its own data and its own momentum; gradients are not averaged.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging import averagers as torch_averagers
from torch.distributed.algorithms.model_averaging import hierarchical_model_averager as torch_levels

import localsgd.torch as ours
from torch_ranks import TorchOptimizer, run_ranks

STEPS = 22


def network() -> nn.Sequential:
    random = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=random) * 0.5)
    return model


def trajectory(rank: int, wrapper: Any, averager: Any) -> list[Any]:
    """The parameters after every step."""
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    optimizer = wrapper(inner, averager)
    random = torch.Generator().manual_seed(100 + rank)
    found = []
    for _ in range(STEPS):
        inputs, targets = (torch.randn(4, width, generator=random) for width in (5, 3))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        found.append(torch.cat([param.detach().flatten() for param in model.parameters()]).numpy())
    return found


def assert_same(results: list[Any], due: set[int], size: int) -> None:
    for step in range(STEPS):
        for mine, theirs in results:
            assert abs(mine[step] - theirs[step]).max() < 2e-6
        if step in due:
            assert all((mine[step] == results[0][0][step]).all() for mine, _ in results)
        elif size > 1:
            assert not (results[0][0][step] == results[1][0][step]).all()


@pytest.mark.parametrize("warmup", [0, 4, 13])
@pytest.mark.parametrize("period", [1, 3, 4])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_periodic_training_is_torchs(size: int, period: int, warmup: int) -> None:
    def body(rank: int) -> Any:
        with warnings.catch_warnings():
            # Both averagers say that a period of 1 saves nothing.
            warnings.filterwarnings("ignore", "(When )?period", UserWarning)
            mine = ours.PeriodicModelAverager(period, warmup)
            theirs = torch_averagers.PeriodicModelAverager(period, warmup)
        return (
            trajectory(rank, ours.PostLocalSGDOptimizer, mine),
            trajectory(rank, TorchOptimizer, theirs),
        )

    assert_same(run_ranks(size, body), set(range(warmup, STEPS, period)), size)


@pytest.mark.parametrize("warmup", [0, 4, 13])
@pytest.mark.parametrize("levels", [{1: 2, 4: 4}, {3: 2, 4: 4}, {4: 2, 8: 4}])
def test_hierarchical_training_is_torchs(levels: dict[int, int], warmup: int) -> None:
    def body(rank: int) -> Any:
        mine, theirs = ours.HierarchicalModelAverager, torch_levels.HierarchicalModelAverager
        return (
            trajectory(rank, ours.PostLocalSGDOptimizer, mine(levels, warmup)),
            trajectory(rank, TorchOptimizer, theirs(levels, warmup)),
        )

    results = run_ranks(4, body)
    top = max(levels)
    for step in range(STEPS):
        for mine, theirs in results:
            assert abs(mine[step] - theirs[step]).max() < 2e-6
        if step >= warmup and step % top == 0:
            assert all((mine[step] == results[0][0][step]).all() for mine, _ in results)


def test_training_is_local_steps_and_means_written_out() -> None:
    """Momentum stays local. By hand: gradients 1 and 2, lr 0.5, momentum 0.5, period 2, warm-up 1.

    Momentum 1, 1.5, 1.75 times the gradient; so steps of 0.5, 0.75, 0.875 times 1 and 2. After
    step 2: -1.25 and -2.5, mean -1.875; after step 3: -2.75 and -3.625.
    """

    def body(rank: int) -> Any:
        param = nn.Parameter(torch.zeros(1))
        inner = torch.optim.SGD([param], lr=0.5, momentum=0.5)
        optimizer = ours.PostLocalSGDOptimizer(inner, ours.PeriodicModelAverager(2, 1))
        values = []
        for _ in range(3):
            param.grad = torch.full((1,), 1.0 + rank)
            optimizer.step()
            values.append(param.item())
        momentum: Tensor = inner.state[param]["momentum_buffer"]
        return values, momentum.item()

    assert run_ranks(2, body) == [
        ([-0.5, -1.875, -2.75], 1.75),
        ([-1.0, -1.875, -3.625], 3.5),
    ]
