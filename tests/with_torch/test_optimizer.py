"""C18 to C24, C36 and C37: to torch and its libraries the wrapper is an optimizer."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.model_averaging import averagers as torch_averagers
from torch.nn import Parameter
from torch.optim import lr_scheduler

import localsgd
import localsgd.torch as ours
from localsgd import run_threads, solo
from torch_ranks import TorchOptimizer, run_ranks


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


def test_a_state_dict_is_the_inner_one_with_the_step() -> None:
    """C20: keys, round trip, and to and from a plain optimizer."""
    model, optimizer = wrapped()
    train(model, optimizer, 3)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups", "step", "averager"}
    assert saved["step"] == 3
    other_model, other = wrapped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(saved)
    assert other.averager.step == 3
    assert saved["step"] == 3
    plain = torch.optim.SGD(linear().parameters(), lr=0.5)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == 0.1
    message = (
        "Loaded state dict does not contain a step counter for an averager. "
        "Setting step counter to 0."
    )
    with pytest.warns(UserWarning, match=message) as caught:
        other.load_state_dict(torch.optim.SGD(other_model.parameters(), lr=0.5).state_dict())
    assert other.averager.step == 0
    assert caught[0].filename == __file__
    assert other.param_groups[0]["lr"] == 0.5


def test_a_plain_optimizer_does_not_keep_the_step() -> None:
    """C20: what a plain optimizer saves later was not saved at that step."""
    model, optimizer = wrapped()
    train(model, optimizer, 3)
    saved = optimizer.state_dict()
    assert saved["param_groups"] == optimizer.optim.state_dict()["param_groups"]
    plain = torch.optim.SGD(model.parameters(), lr=0.5)
    plain.load_state_dict(saved)
    with pytest.warns(UserWarning, match="does not contain a step counter"):
        optimizer.load_state_dict(plain.state_dict())
    assert optimizer.averager.step == 0


def test_torchs_checkpoints_load_into_ours_and_ours_into_torchs() -> None:
    """C20, with torch's own wrapper."""

    def body(rank: int) -> Any:
        def made(wrapper: Any, averager: Any) -> tuple[nn.Linear, Any]:
            model = linear()
            inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            return model, wrapper(inner, averager(4))

        pairs = [
            made(ours.PostLocalSGDOptimizer, ours.PeriodicModelAverager),
            made(TorchOptimizer, torch_averagers.PeriodicModelAverager),
        ]
        for model, optimizer in pairs:
            train(model, optimizer, 3)
        (model, mine), (other, torchs) = pairs
        mine_saved, torchs_saved = mine.state_dict(), torchs.state_dict()
        mine.load_state_dict(torchs_saved)
        torchs.load_state_dict(mine_saved)
        for model, optimizer in pairs:
            train(model, optimizer, 2)
        assert set(torchs_saved) < set(mine_saved)
        same = all(
            torch.allclose(one, two)
            for one, two in zip(model.parameters(), other.parameters(), strict=True)
        )
        return mine.averager.step, torchs.averager.step, same

    assert run_ranks(2, body) == [(5, 5, True)] * 2


def test_a_failing_load_leaves_the_counter() -> None:
    """C20."""
    model, optimizer = wrapped()
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict({**saved, "step": 9, "param_groups": []})
    with pytest.raises(TypeError, match="step must be an integer, got 'nine'"):
        optimizer.load_state_dict({**saved, "step": "nine"})
    changed = {**saved, "param_groups": [{**saved["param_groups"][0], "lr": 7.0}]}
    with pytest.raises(ValueError, match="an averager's state dict must have"):
        optimizer.load_state_dict({**changed, "averager": {}})
    assert optimizer.averager.step == 2
    assert optimizer.param_groups[0]["lr"] == 0.1


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
            else:
                optimizer.step()
        return param.item(), averager.step

    assert run_threads(2, body) == [(-2.5, 3)] * 2


def test_copies_count_for_themselves() -> None:
    """C37 and B8."""
    model, optimizer = wrapped()
    train(model, optimizer, 3)
    copied = copy.deepcopy(optimizer)
    train(model, optimizer)
    assert (optimizer.averager.step, copied.averager.step) == (4, 3)
    weight = copied.param_groups[0]["params"][0]
    assert weight is not model.weight
    weight.grad = torch.ones_like(weight)
    copied.step()
    assert copied.averager.step == 4


def test_pickles_reconnect_to_all_workers() -> None:
    """C37: the averager and the wrapper, with their counters; used once loaded."""

    def body(rank: int) -> Any:
        param = Parameter(torch.full((1,), float(rank)))
        found = []
        for averager in (
            ours.PeriodicModelAverager(2),
            ours.HierarchicalModelAverager({2: 2, 4: 4}, 1),
        ):
            averager.step = 3
            optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
            loaded = pickle.loads(pickle.dumps(optimizer))
            assert loaded.averager.step == 3
            loaded.step()
            loaded.step()
            found.append((loaded.averager.step, loaded.param_groups[0]["params"][0].item()))
        return found

    assert run_ranks(4, body) == [[(5, 1.5), (5, 1.5)]] * 4


def test_an_averager_of_some_workers_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dumps(ours.PeriodicModelAverager(2, 0, solo()))


def test_torch_save_keeps_a_wrapper_state_loadable_without_pickle() -> None:
    model, optimizer = wrapped()
    train(model, optimizer, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert optimizer.averager.step == 2


def test_another_period_than_the_saved_one_is_reported() -> None:
    """C36."""
    _, optimizer = wrapped()
    _, other = wrapped(period=8)
    with pytest.warns(UserWarning, match="post_local.4.*goes on with post_local.8") as caught:
        other.load_state_dict(optimizer.state_dict())
    assert caught[0].filename == __file__


def test_distributed_checkpoints_keep_state_and_counter() -> None:
    """B7: torch's wrapper raises, or loses the counter."""

    def body(rank: int) -> Any:
        from torch.distributed.checkpoint.state_dict import (
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        def made() -> tuple[nn.Linear, ours.PostLocalSGDOptimizer]:
            model = linear()
            inner = torch.optim.AdamW(model.parameters(), lr=0.1)
            return model, ours.PostLocalSGDOptimizer(inner, ours.PeriodicModelAverager(4))

        fresh_model, fresh = made()
        get_optimizer_state_dict(fresh_model, fresh)
        assert fresh.averager.step == 0
        model, optimizer = made()
        train(model, optimizer, 3)
        saved = get_optimizer_state_dict(model, optimizer)
        set_optimizer_state_dict(fresh_model, fresh, saved)
        moments = optimizer.state[model.weight]["exp_avg"]
        same = torch.equal(fresh.state[fresh_model.weight]["exp_avg"], moments)
        return fresh.averager.step, same, fresh.param_groups[0]["lr"]

    assert run_ranks(2, body) == [(3, True, 0.1)] * 2


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


class Counter:
    """Somebody's own averager."""

    def __init__(self) -> None:
        self.step = 0
        self.seen: list[int] = []

    def average_parameters(self, params: Any) -> None:
        self.seen.append(len(params))
        self.step += 1


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
