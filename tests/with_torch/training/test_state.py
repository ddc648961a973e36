"""C33: what becomes of the state of torch's optimizers in a round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo

RARELY = 1_000_000


def averager_of(comm: Any, period: int = RARELY) -> ours.PeriodicModelAverager:
    return ours.PeriodicModelAverager(period, 0, comm)


def stepped(comm: Any, policy: Any, make: Any = None, steps: int = 2) -> Any:
    """A parameter and its optimizer, with the gradient 1 on rank 0 and 3 on rank 1."""
    param = Parameter(torch.zeros(2))
    inner = torch.optim.SGD([param], lr=1.0, momentum=0.5) if make is None else make([param])
    optimizer = ours.PostLocalSGDOptimizer(inner, averager_of(comm), state=policy)
    for _ in range(steps):
        param.grad = torch.full((2,), 1.0 + 2 * comm.rank)
        optimizer.step()
    return param, inner, optimizer


def test_momentum_is_local_averaged_or_forgotten() -> None:
    """C33. Gradients 1 and 3, momentum 0.5, a round after the first step, none after the second.

    Local: 0.5·1 + 1 and 0.5·3 + 3. Averaged: 0.5·2 + 1 and 0.5·2 + 3. Forgotten: 1 and 3.
    """

    def body(comm: Any) -> Any:
        found = []
        for policy in ("local", "mean", "reset"):
            param, inner, _ = stepped(comm, policy)
            found.append(inner.state[param]["momentum_buffer"][0].item())
        return found

    assert run_threads(2, body) == [[1.5, 2.0, 1.0], [4.5, 4.0, 3.0]]


KINDS: list[Any] = [
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    lambda params: torch.optim.Adam(params, lr=0.1),
    lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True, fused=True),
    lambda params: torch.optim.AdamW(params, lr=0.1),
    lambda params: torch.optim.RAdam(params, lr=0.1),
    lambda params: torch.optim.Adamax(params, lr=0.1),
    lambda params: torch.optim.Adagrad(params, lr=0.1, initial_accumulator_value=0.5),
    lambda params: torch.optim.Adadelta(params, lr=0.1),
    lambda params: torch.optim.RMSprop(params, lr=0.1, momentum=0.9, centered=True),
]


@pytest.mark.parametrize("make", KINDS)
def test_the_state_of_every_optimizer_is_averaged(make: Any) -> None:
    """Against the mean written out; the counters of steps are equal and stay."""

    def body(comm: Any) -> None:
        param, local, _ = stepped(comm, "local", make, steps=1)
        states = comm.collect([state.tolist() for state in local.state[param].values()])
        param, inner, optimizer = stepped(comm, "mean", make, steps=1)
        for index, (key, state) in enumerate(inner.state[param].items()):
            mean = torch.tensor([theirs[index] for theirs in states]).mean(0)
            torch.testing.assert_close(state, mean, msg=key)
        places = [state.data_ptr() for state in inner.state[param].values() if state.dim()]
        optimizer.flush()
        param.grad = torch.ones(2)
        optimizer.step()
        optimizer.flush()
        assert places == [s.data_ptr() for s in inner.state[param].values() if s.dim()]

    run_threads(2, body)


@pytest.mark.parametrize("make", [*KINDS, lambda params: torch.optim.Rprop(params)])
def test_a_reset_optimizer_is_as_a_new_one(make: Any) -> None:
    """After a step and a round, the next step is a new optimizer's first."""
    param, _, optimizer = stepped(solo(), "reset", make, steps=1)
    new = Parameter(param.detach().clone())
    fresh = make([new])
    for each in (param, new):
        each.grad = torch.full((2,), 0.7)
    optimizer.step()
    fresh.step()
    assert torch.equal(param, new)


def test_unequal_numbers_of_steps_are_an_error_before_anything_changes() -> None:
    """Adam's moments after 1 and 2 steps have no mean."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        inner = torch.optim.Adam([param], lr=0.1)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager_of(comm), state="mean")
        for _ in range(1 + comm.rank):
            param.grad = torch.full((1,), 1.0 + comm.rank)
            inner.step()
        before = param.item()
        with pytest.raises(MismatchError, match="equally many steps .* 1 on rank 0, 2 on rank 1"):
            optimizer.flush()
        return param.item() == before

    assert run_threads(2, body) == [True, True]


def test_state_is_averaged_at_once_however_many_parameters_there_are() -> None:
    """Two moments of each, in one memory: as many calls for ten parameters as for two."""

    def body(comm: Any) -> list[int]:
        calls = []
        for layers in (1, 5):
            model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
            inner = torch.optim.Adam(model.parameters(), lr=0.1)
            optimizer = ours.PostLocalSGDOptimizer(inner, averager_of(comm), state="mean")
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            before = comm.traffic.calls
            optimizer.flush()
            calls.append(comm.traffic.calls - before)
        return calls

    for few, many in run_threads(2, body):
        assert few == many


def test_a_worker_without_state_takes_that_of_the_others() -> None:
    """A worker of weight 0 that never stepped: it goes on from the others' state."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        inner = torch.optim.Adam([param], lr=0.1)
        averager = averager_of(comm)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager, state="mean")
        averager.record_samples(comm.rank)
        if comm.rank:
            param.grad = torch.ones(1)
            inner.step()
        optimizer.flush()
        state = inner.state[param]
        return state["step"].item(), state["exp_avg"].item(), param.item()

    first, second = run_threads(2, body)
    assert first == second == (1.0, pytest.approx(0.1), pytest.approx(-0.1))


def test_groups_of_a_hierarchy_average_state_among_themselves() -> None:
    """Pairs: momenta 1, 3, 5, 7 become 2, 2, 6, 6."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        inner = torch.optim.SGD([param], lr=1.0, momentum=0.5)
        averager = ours.HierarchicalModelAverager({2: 2, 4: 4}, 0, comm)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager, state="mean")
        averager.step = 2
        param.grad = torch.full((1,), 1.0 + 2 * comm.rank)
        optimizer.step()
        return inner.state[param]["momentum_buffer"].item()

    assert run_threads(4, body) == [2.0, 2.0, 6.0, 6.0]
