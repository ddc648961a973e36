"""Tensors that a mode of torch has made or changed: averaged where they can be, else refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import run_threads, solo
from torch_modes import MODES, Within, outside

RARELY = 1_000_000


def test_a_round_inside_of_autocast_is_seen_by_the_next_pass() -> None:
    """Autocast keeps weights that it has rounded: 0 and 2 before the round, 1 after it."""

    def body(comm: Any) -> Any:
        model = nn.Linear(1, 1, bias=False)
        model.weight.detach().fill_(2.0 * comm.rank)
        averager = ours.PeriodicModelAverager(RARELY, 0, comm)
        with torch.autocast("cpu", torch.bfloat16):
            before = model(torch.ones(1, 1)).item()
            averager.flush(model.parameters())
            return before, model(torch.ones(1, 1)).item()

    assert run_threads(2, body) == [(0.0, 1.0), (2.0, 1.0)]


def test_buffers_of_inference_mode_are_averaged() -> None:
    """As a validation leaves them in a module; 0 and 2 become 1, and begin as rank 0's."""

    def body(comm: Any) -> Any:
        model = nn.Linear(1, 1)
        with torch.inference_mode():
            model.register_buffer("seen", torch.full((2,), 5.0 + comm.rank))
        adopted = ours.adopt(model, comm, rules={"seen": "mean"})
        start = model.get_buffer("seen").tolist()
        with torch.inference_mode():
            model.get_buffer("seen").fill_(2.0 * comm.rank)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            ours.PeriodicModelAverager(RARELY, 0, comm),
            buffers=adopted.buffers,
        )
        optimizer.flush()
        return start, model.get_buffer("seen").tolist()

    assert run_threads(2, body) == [([5.0, 5.0], [1.0, 1.0])] * 2


def inference_tensor() -> Tensor:
    with torch.inference_mode():
        return Parameter(torch.ones(2))


def fake_tensor() -> Tensor:
    with FakeTensorMode():
        return Parameter(torch.ones(2))


def wrapped_tensor() -> Tensor:
    found: list[Tensor] = []

    def loss(inputs: Tensor) -> Tensor:
        found.append(inputs.clone())
        return inputs.sum()

    torch.func.grad(loss)(torch.ones(2))
    return found[0]


KINDS = {
    "torch.inference_mode": inference_tensor,
    "a FakeTensorMode": fake_tensor,
    "a transformation of torch.func": wrapped_tensor,
}


@pytest.mark.parametrize("mode", [outside, *MODES.values()])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_belong_to_a_mode_are_refused_by_name(kind: str, mode: Within) -> None:
    tensor, plain = KINDS[kind](), torch.ones(2)
    with pytest.raises(ValueError, match=rf"parameter '1' must .* got one of {kind}"):
        mode(lambda: ours.average_parameters([plain, tensor], solo()))
    group: Any = [{"params": [tensor], "param_names": ["weight"]}]
    with pytest.raises(ValueError, match=rf"parameter 'weight' must .* got one of {kind}"):
        mode(lambda: ours.PeriodicModelAverager(2, 0, solo()).flush(group))
