"""A model with fixed values, and wrapped optimizers of it, for tests of the adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import localsgd.torch as ours
from localsgd import solo


def linear() -> nn.Linear:
    """A model with fixed values."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.linspace(-1, 1, param.numel()).view_as(param))
    return model


def wrapped(inner: Any = None, **arguments: Any) -> tuple[nn.Linear, ours.PostLocalSGDOptimizer]:
    model = linear()
    optim = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if inner is None else inner(model)
    )
    averager = ours.PeriodicModelAverager(**{"period": 4, "process_group": solo(), **arguments})
    return model, ours.PostLocalSGDOptimizer(optim, averager)


def train(model: nn.Linear, optimizer: Any, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).pow(2).sum().backward()
        optimizer.step()
