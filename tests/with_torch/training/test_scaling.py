"""C29: under a ``GradScaler`` a wrapped optimizer does what it does by itself, and all count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import run_threads, solo


def made(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with fixed values, and an optimizer with two groups of its parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": model[2].parameters(), "lr": 0.01},
    ]
    optimizer, _, way = kind.partition(" ")
    options = {way: True} if way else {}
    if optimizer == "AdamW":
        return model, torch.optim.AdamW(groups, **options)
    return model, torch.optim.SGD(groups, momentum=0.9, **options)


def values(
    model: nn.Module, optimizer: torch.optim.Optimizer, unscaled: bool
) -> tuple[list[list[float]], list[float]]:
    """All parameters and the scale after each of some steps, the fourth with an infinite loss."""
    # No power of two: dividing by it is not the same as multiplying by its inverse.
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0, growth_factor=1.7, growth_interval=2)
    inputs = torch.linspace(-1, 1, 20).view(4, 5)
    seen, scales = [], []
    for step in range(7):
        optimizer.zero_grad()
        loss = model(inputs).pow(2).sum() * (float("inf") if step == 3 else 1.0)
        scaler.scale(loss).backward()
        if unscaled:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        flat = torch.cat([param.detach().flatten() for param in model.parameters()])
        seen.append(flat.tolist())
        scales.append(scaler.get_scale())
    return seen, scales


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize(
    "kind", ["SGD", "SGD foreach", "SGD fused", "AdamW", "AdamW foreach", "AdamW fused"]
)
def test_scaled_steps_have_the_bits_of_torchs_own(kind: str, unscaled: bool) -> None:
    """The same optimizer, bare, under a scaler of its own in the same run is the oracle."""
    theirs = values(*made(kind), unscaled)
    model, inner = made(kind)
    averager = ours.PeriodicModelAverager(4, 0, solo())
    assert values(model, ours.PostLocalSGDOptimizer(inner, averager), unscaled) == theirs
    assert averager.step == 7
    assert theirs[0][2] == theirs[0][3] != theirs[0][4]


def overflowing(rank: int, step: int) -> float:
    return float("inf") if (rank, step) == (0, 5) else 1.0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_step_that_amp_skips_on_one_rank_is_counted_on_all(fused: bool, unscaled: bool) -> None:
    """C29 and B2: period 4, an overflow on rank 0 in step 5; all average in steps 0, 4, 8, 12.

    Every other step subtracts 1, so rank 0 has one step less behind it at step 8: the mean of
    -8 and -9.
    """

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(4, 0, comm)
        inner = torch.optim.SGD([param], lr=1.0, fused=fused)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
        values = []
        for step in range(13):
            optimizer.zero_grad()
            scaler.scale((param * overflowing(comm.rank, step)).sum()).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            values.append(param.item())
        return values, averager.step, scaler.get_scale()

    (first, steps, scale), (second, _, other_scale) = run_threads(2, body)
    assert steps == 13
    assert (scale, other_scale) == (2.0, 4.0)
    assert first[4:9] == [-5.0, -5.0, -6.0, -7.0, -8.5]
    assert second[4:9] == [-5.0, -6.0, -7.0, -8.0, -8.5]
    assert first[12] == second[12] == -12.5


def test_a_step_without_gradients_is_counted_under_a_scaler() -> None:
    param = Parameter(torch.ones(2))
    averager = ours.PeriodicModelAverager(4, 0, solo())
    optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    scaler.step(optimizer)
    assert (averager.step, param.tolist()) == (1, [1.0, 1.0])


def test_a_scaler_hands_a_closure_on() -> None:
    param = Parameter(torch.ones(2))
    averager = ours.PeriodicModelAverager(4, 0, solo())
    optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(param.sum()).backward()

    def closure() -> float:
        return 5.0

    assert scaler.step(optimizer, closure) == 5.0
    assert (averager.step, param.tolist()) == (1, [0.0, 0.0])
