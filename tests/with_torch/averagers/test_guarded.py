"""NaN and infinity in torch's parameters: the core's guard, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import localsgd.torch as ours
from localsgd import Guard, NotFiniteError, run_threads

pytestmark = pytest.mark.filterwarnings("ignore:rank.* left out of a round:UserWarning")


def stepped(comm: Any, guard: Guard | None, make: Any, **options: Any) -> Any:
    """A layer after a step in which rank 1's gradient has a NaN, and a round; and the optimizer."""
    torch.manual_seed(0)
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    inner = make(layer.named_parameters())
    optimizer = ours.LocalSGD(inner, 1, process_group=comm, guard=guard, **options)
    layer.weight.grad = torch.tensor([[1.0, float("nan") if comm.rank == 1 else 2.0]])
    optimizer.step()
    return layer, inner


def momentum(params: Any) -> Any:
    return torch.optim.SGD(params, lr=1.0, momentum=0.5)


def test_a_round_names_the_worker_and_the_parameter() -> None:
    def body(comm: Any) -> None:
        words = r"1 on rank 1 that are not, the first in 'weight' \(number 1\)"
        with pytest.raises(NotFiniteError, match=words):
            stepped(comm, Guard(), momentum)

    run_threads(2, body)


@pytest.mark.parametrize("state", ["local", "mean", "reset"])
def test_who_is_left_out_goes_on_with_the_others_numbers(state: Any) -> None:
    """Both stand at 1 - 1 and 1 - 2; what rank 1 has of momentum is nothing, or rank 0's."""

    def body(comm: Any) -> Any:
        layer, inner = stepped(comm, Guard("leave out"), momentum, state=state)
        kept = inner.state[layer.weight].get("momentum_buffer")
        return layer.weight.tolist(), None if kept is None else kept.tolist()

    own = {"local": [[1.0, 2.0]], "mean": [[1.0, 2.0]], "reset": None}[state]
    other = [[1.0, 2.0]] if state == "mean" else None
    assert run_threads(2, body) == [([[0.0, -1.0]], own), ([[0.0, -1.0]], other)]


def test_without_a_guard_a_nan_reaches_all() -> None:
    def body(comm: Any) -> bool:
        layer, _ = stepped(comm, None, momentum)
        return bool(layer.weight.isnan().any())

    assert run_threads(2, body) == [True, True]
