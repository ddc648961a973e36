"""A model whose gradients are what it is given, for tests of the gradient stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import localsgd.torch as ours

ALWAYS = 1_000_000


def averager_of(comm: Any, warmup: int = ALWAYS) -> ours.PeriodicModelAverager:
    return ours.PeriodicModelAverager(ALWAYS, warmup, comm)


class Scaled(nn.Module):
    """Parameters ``a``, ``b`` and ``c``; the gradient of those used is what the model is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(3)) for _ in range(3))

    def forward(self, value: float, names: str = "abc") -> Tensor:
        return torch.stack([value * getattr(self, name).sum() for name in names]).sum()

    def gradients(self) -> list[float | None]:
        found = [param.grad for param in self.parameters()]
        return [None if grad is None else grad.unique().item() for grad in found]


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))
