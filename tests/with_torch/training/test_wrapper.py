"""C18 to C24, C36 and C37: to torch and its libraries the wrapper is an optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging import averagers as torch_averagers
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from localsgd import run_threads, solo
from torch_models import linear, train, wrapped
from torch_ranks import TorchOptimizer, run_ranks


def test_the_mean_is_of_the_stepped_values() -> None:
    """C18: lr 0.1, gradients 1 and 3 from 0: -0.1 and -0.3, whose mean is -0.2."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(4, 0, comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=0.1), averager)
        param.grad = torch.full((1,), 1.0 + 2 * comm.rank)
        optimizer.step()
        return param.item()

    assert run_threads(2, body) == [pytest.approx(-0.2, abs=1e-7)] * 2


def test_step_returns_the_loss_of_a_closure() -> None:
    """C19 and B7: torch takes no closure."""
    model, optimizer = wrapped()
    assert optimizer.step() is None

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).pow(2).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() > 0
    assert optimizer.averager.step == 2


def test_lbfgs_works_and_counts_one_step_a_call() -> None:
    model, optimizer = wrapped(lambda model: torch.optim.LBFGS(model.parameters(), lr=0.5))
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).pow(2).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[2] < losses[0]
    assert optimizer.averager.step == 3


def test_repr_and_state_are_the_inner_optimizers() -> None:
    """C21."""
    _, optimizer = wrapped()
    assert repr(optimizer) == repr(optimizer.optim)
    assert optimizer.state is optimizer.optim.state
    assert optimizer.defaults is optimizer.optim.defaults
    with pytest.raises(AttributeError):
        optimizer.state = {}  # type: ignore[misc]
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_has_both_manners(set_to_none: bool) -> None:
    """C22."""
    model, optimizer = wrapped()
    train(model, optimizer)
    optimizer.zero_grad(set_to_none=set_to_none)
    assert (model.weight.grad is None) == set_to_none
    assert set_to_none or not model.weight.grad.any()  # type: ignore[union-attr]


def test_hooks_run_around_step_and_state_dicts() -> None:
    """B8."""
    model, optimizer = wrapped()
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    train(model, optimizer)
    saved = optimizer.state_dict()
    assert saved["more"] == 1
    optimizer.load_state_dict(saved)
    assert seen == ["before", "after", "saving", "loading", "loaded"]


def test_a_step_left_out_by_hand_is_counted() -> None:
    """B2."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(2, 0, comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
        for step in range(3):
            param.grad = torch.ones(1)
            if (comm.rank, step) == (0, 1):
                optimizer.skip_step()
                assert param.grad is None
            else:
                optimizer.step()
        return param.item(), averager.step

    assert run_threads(2, body) == [(-2.5, 3)] * 2


def test_a_step_that_moves_nothing_is_counted() -> None:
    """A warm-up of the learning rate begins at 0, and gradients may be 0 on one rank."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.full((1,), float(comm.rank)))
        averager = ours.PeriodicModelAverager(4, 0, comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=0.0), averager)
        param.grad = torch.full((1,), float(comm.rank))
        optimizer.step()
        return param.item(), averager.step

    assert run_threads(2, body) == [(0.5, 1)] * 2


def test_an_averager_of_two_optimizers_counts_the_steps_of_both() -> None:
    """P7: period 2 is one step of either; the second one's parameter is never averaged."""

    def body(rank: int) -> Any:
        found = []
        for wrapper, kind in (
            (ours.PostLocalSGDOptimizer, ours.PeriodicModelAverager),
            (TorchOptimizer, torch_averagers.PeriodicModelAverager),
        ):
            averager: Any = kind(2)
            params = [Parameter(torch.zeros(1)) for _ in range(2)]
            optimizers = [wrapper(torch.optim.SGD([param], lr=1.0), averager) for param in params]
            for _ in range(3):
                for param, optimizer in zip(params, optimizers, strict=True):
                    param.grad = torch.full((1,), 1.0 + rank)
                    optimizer.step()
            found.append((averager.step, [param.item() for param in params]))
        return found

    for rank, found in enumerate(run_ranks(2, body)):
        assert found == [(6, [-4.5, -3.0 - 3.0 * rank])] * 2


class Counter:
    """Somebody's own averager."""

    def __init__(self) -> None:
        self.step = 0
        self.seen: list[int] = []

    def average_parameters(self, params: Any) -> None:
        self.seen.append(len(params))
        self.step += 1


def test_samples_of_a_step_left_out_are_forgotten() -> None:
    """Weights 1 and 2 of 0 and -3: -2; rank 0 has read 5 samples more and left them out."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(4, 1, comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
        averager.record_samples(5 if comm.rank == 0 else 1)
        param.grad = torch.full((1,), 3.0)
        if comm.rank == 0:
            optimizer.skip_step()
        else:
            optimizer.step()
        averager.record_samples(1)
        param.grad = torch.zeros(1)
        optimizer.step()
        return param.item()

    assert run_threads(2, body) == [-2.0] * 2


def test_any_averager_works() -> None:
    """Somebody's own, torch's, and every averager of the core in one line."""
    model = linear()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    counter = Counter()
    train(model, ours.PostLocalSGDOptimizer(inner, counter), 2)
    assert (counter.seen, counter.step) == ([1, 1], 2)
    core = localsgd.ModelAverager(localsgd.every(2), solo())
    train(model, ours.PostLocalSGDOptimizer(inner, core), 2)
    assert core.step == 2
    with pytest.raises(TypeError, match="averager must have step"):
        ours.PostLocalSGDOptimizer(inner, object())  # type: ignore[arg-type]

    def body(rank: int) -> Any:
        param = Parameter(torch.full((1,), float(rank)))
        averager = torch_averagers.PeriodicModelAverager(2, process_group=dist.group.WORLD)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
        param.grad = torch.zeros(1)
        optimizer.step()
        return param.item(), optimizer.state_dict()["step"]

    assert run_ranks(2, body) == [(0.5, 1)] * 2


class Plain:
    """Somebody's own optimizer: what torch's wrapper needs of one, and no more."""

    def __init__(self, params: list[Parameter]) -> None:
        self.param_groups = [{"params": params, "lr": 0.5}]
        self.state: dict[Any, Any] = {}

    def step(self) -> None:
        for param in self.param_groups[0]["params"]:  # type: ignore[attr-defined]
            param.detach().sub_(0.5 * param.grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for param in self.param_groups[0]["params"]:  # type: ignore[attr-defined]
            param.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"state": {}, "param_groups": [{"lr": 0.5, "params": [0]}]}

    def load_state_dict(self, state_dict: Any) -> None: ...


def test_an_optimizer_need_not_be_torchs_but_must_be_one() -> None:
    def body(rank: int) -> Any:
        found = []
        for wrapper, averager in (
            (ours.PostLocalSGDOptimizer, ours.PeriodicModelAverager(2)),
            (TorchOptimizer, torch_averagers.PeriodicModelAverager(2)),
        ):
            param = Parameter(torch.zeros(1))
            optimizer: Any = wrapper(Plain([param]), averager)  # type: ignore[arg-type]
            param.grad = torch.full((1,), 1.0 + rank)
            optimizer.step()
            optimizer.zero_grad()
            optimizer.load_state_dict(optimizer.state_dict())
            found.append((param.item(), averager.step, param.grad))
        return found

    assert run_ranks(2, body) == [[(-0.75, 1, None)] * 2] * 2
    with pytest.raises(TypeError, match="optim must be an optimizer, with param_groups, got Lin"):
        ours.PostLocalSGDOptimizer(linear(), ours.PeriodicModelAverager(2, 0, solo()))  # type: ignore[arg-type]


def test_flush_averages_now() -> None:
    """C34: no step is counted and the phase does not move."""

    def body(comm: Any) -> Any:
        param = Parameter(torch.full((1,), float(comm.rank)))
        averager = ours.PeriodicModelAverager(4, 2, comm)
        optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
        optimizer.step()
        optimizer.flush()
        return param.item(), averager.step

    assert run_threads(3, body) == [(1.0, 1)] * 3
    with pytest.raises(TypeError, match="flush"):
        ours.PostLocalSGDOptimizer(torch.optim.SGD([Parameter(torch.ones(1))]), Counter()).flush()
