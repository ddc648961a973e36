"""Outer optimizers under torch's: the core's results to the bit, and saved as torch saves."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import localsgd
import localsgd.torch as ours
from localsgd import Arena, ModelAverager, every, optim, outer, run_threads

DILOCO = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
MADE = [
    lambda: outer.SGD(**DILOCO),
    lambda: outer.SlowMo(lambda: 0.1, beta=0.6),
    lambda: outer.Yogi(0.1),
    lambda: outer.using(optim.AdamW, lr=0.1, eps=0.1),
]


def gradient(rank: int, step: int) -> np.ndarray:
    """Local steps are of half of it: torch may round once where numpy rounds twice."""
    return np.random.default_rng(100 * rank + step).normal(size=(3, 5)).astype(np.float32)


def in_numpy(comm: Any, made: Any, steps: int) -> bytes:
    arena = Arena({"w": np.ones((3, 5), np.float32)}, comm)
    averager = ModelAverager(every(3), comm, outer=made())
    training = localsgd.PostLocalSGDOptimizer(optim.SGD(arena, lr=0.5), averager)
    for step in range(steps):
        arena.grad["w"] = gradient(comm.rank, step)
        training.step()
    return arena.flat.tobytes()


def begun(comm: Any, made: Any) -> tuple[nn.Parameter, Any]:
    param = nn.Parameter(torch.ones(3, 5))
    averager = ModelAverager(every(3), comm, outer=made())
    return param, ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=0.5), averager)


def train(param: nn.Parameter, optimizer: Any, rank: int, steps: range) -> None:
    for step in steps:
        param.grad = torch.from_numpy(gradient(rank, step))
        optimizer.step()


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize(("size", "hosts"), [(1, "1"), (2, "2"), (3, "2+1"), (4, "4")])
def test_training_has_the_bits_of_the_core(size: int, hosts: str, made: Any) -> None:
    def body(comm: Any) -> bool:
        param, optimizer = begun(comm, made)
        train(param, optimizer, comm.rank, range(8))
        return param.detach().numpy().tobytes() == in_numpy(comm, made, 8)

    assert run_threads(size, body, hosts=hosts) == [True] * size


@pytest.mark.parametrize("saved_at", range(7))
def test_resuming_from_a_file_equals_never_stopping_to_the_bit(saved_at: int) -> None:
    """Saved by torch, and loaded as from a stranger."""

    def body(comm: Any) -> bool:
        made = MADE[0]
        param, optimizer = begun(comm, made)
        train(param, optimizer, comm.rank, range(saved_at))
        file = io.BytesIO()
        torch.save({"param": param.detach(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed, other = begun(comm, made)
        with torch.no_grad():
            resumed.copy_(saved["param"])
        other.load_state_dict(saved["optimizer"])
        train(resumed, other, comm.rank, range(saved_at, 8))
        return resumed.detach().numpy().tobytes() == in_numpy(comm, made, 8)

    assert run_threads(3, body, hosts="2+1") == [True] * 3
