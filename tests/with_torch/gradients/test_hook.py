"""C25, C26, C27 and C35: the communication hook under DDP, with torch's own in the same run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as theirs
from torch.distributed.algorithms.model_averaging import averagers as torch_averagers
from torch.nn.parallel import DistributedDataParallel

import localsgd.torch as ours
from torch_ranks import TorchOptimizer, run_ranks

WAYS: list[Any] = [
    (ours.PostLocalSGDState, ours.post_localSGD_hook),
    (theirs.PostLocalSGDState, theirs.post_localSGD_hook),
]


class Scaled(nn.Module):
    """Parameters whose gradient is what the model is called with."""

    def __init__(self, *counts: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(count)) for count in counts])

    def forward(self, value: float) -> torch.Tensor:
        return torch.stack([(weight * value).sum() for weight in self.weights]).sum()


def hooked(state: Any, hook: Any, *counts: int, bucket_cap_mb: float = 25) -> Any:
    model = DistributedDataParallel(Scaled(*(counts or (3,))), bucket_cap_mb=bucket_cap_mb)
    model.register_comm_hook(state, hook)
    return model


def gradients(model: Any, state: Any, value: float, passes: int) -> list[tuple[float, int]]:
    """After every backward pass the gradient, equal in all elements, and the state's counter."""
    found = []
    for _ in range(passes):
        model.zero_grad()
        model(value).backward()
        values = torch.cat([weight.grad for weight in model.module.weights]).unique()
        found.append((values.item(), state.iter))
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_gradients_are_averaged_by_all_at_first_and_then_not(size: int) -> None:
    """C25, rules K1 to K3: ranks give 1, 2, …, start at 3."""

    def body(rank: int) -> Any:
        found = []
        for kind, hook in WAYS:
            state = kind(None, None, 3, post_local_gradient_allreduce=False)
            found.append(gradients(hooked(state, hook), state, 1.0 + rank, 6))
        return found

    mean = (size + 1) / 2
    for rank, found in enumerate(run_ranks(size, body)):
        last = (1.0 + rank, 3)
        assert found[0] == [(mean, 1), (mean, 2), (mean, 3), last, last, last]
        # torch divides before it adds: a third and two thirds and 1.
        assert [value for value, _ in found[1]] == pytest.approx([v for v, _ in found[0]])
        assert [passes for _, passes in found[1]] == [passes for _, passes in found[0]]


def test_gradients_are_averaged_by_all_at_first_and_then_in_groups() -> None:
    """C25, rule K4: ranks give 1 to 4, blocks of 2, start at 3."""

    def body(rank: int) -> Any:
        block, _ = dist.new_subgroups(2)
        found = []
        for kind, hook in WAYS:
            state = kind(None, block, 3)
            found.append(gradients(hooked(state, hook), state, 1.0 + rank, 5))
        return found

    for rank, found in enumerate(run_ranks(4, body)):
        pair = (1.5 if rank < 2 else 3.5, 3)
        assert found == [[(2.5, 1), (2.5, 2), (2.5, 3), pair, pair]] * 2


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_hosts_workers_are_the_group_by_default(size: int) -> None:
    """B5: torch makes one for each CUDA device in mid-training, and fails where there is none."""

    def body(rank: int) -> Any:
        state = ours.PostLocalSGDState(None, None, 1)
        return gradients(hooked(state, ours.post_localSGD_hook), state, 1.0 + rank, 2)

    mean = (size + 1) / 2
    assert run_ranks(size, body) == [[(mean, 1), (mean, 1)]] * size


def test_models_of_many_buckets_count_once_a_pass() -> None:
    """C26, rule K2: a bucket of its own for each of five parameters."""

    def body(rank: int) -> Any:
        found, calls = [], []
        for kind, hook in WAYS:
            state = kind(None, None, 3, post_local_gradient_allreduce=False)
            model = hooked(state, hook, *[300] * 5, bucket_cap_mb=0.001)
            for _ in range(4):
                before = ours.world().traffic.calls
                found += gradients(model, state, 1.0 + rank, 1)
                calls.append(ours.world().traffic.calls - before)
        # DDP has one bucket until it has seen the order of a pass.
        assert calls[1:4] == [5, 5, 0]
        return found

    for rank, found in enumerate(run_ranks(2, body)):
        assert found == [(1.5, 1), (1.5, 2), (1.5, 3), (1.0 + rank, 3)] * 2


def test_passes_without_synchronisation_do_not_count() -> None:
    """C26, rule K2: by hand, the gradients of two passes are added before they are averaged."""

    def body(rank: int) -> Any:
        found = []
        for kind, hook in WAYS:
            state = kind(None, None, 1, post_local_gradient_allreduce=False)
            model = hooked(state, hook)
            with model.no_sync():
                model(1.0 + rank).backward()
            assert state.iter == 0
            model(1.0 + rank).backward()
            found.append((model.module.weights[0].grad[0].item(), state.iter))
        return found

    assert run_ranks(2, body) == [[(3.0, 1)] * 2] * 2


def test_a_start_at_0_is_local_from_the_first_pass() -> None:
    """C26, rule K2."""

    def body(rank: int) -> Any:
        found = []
        for kind, hook in WAYS:
            state = kind(None, None, 0, post_local_gradient_allreduce=False)
            found.append(gradients(hooked(state, hook), state, 1.0 + rank, 2))
        return found

    for rank, found in enumerate(run_ranks(2, body)):
        assert found == [[(1.0 + rank, 0)] * 2] * 2


def test_nothing_is_sent_in_the_local_phase() -> None:
    """C27: neither calls nor bytes of any kind."""

    def body(rank: int) -> Any:
        state = ours.PostLocalSGDState(None, None, 2, post_local_gradient_allreduce=False)
        model = hooked(state, ours.post_localSGD_hook)
        comm, calls = ours.world(), []
        for _ in range(4):
            before = comm.traffic
            gradients(model, state, 1.0, 1)
            moved = comm.traffic - before
            calls.append((moved.calls, moved.host_read, moved.control))
        return calls

    assert run_ranks(2, body) == [[(1, 12, 0), (1, 12, 0), (0, 0, 0), (0, 0, 0)]] * 2


def test_compression_wraps_the_hook() -> None:
    """1.001 and 2.002 in float16: 1.50195 in the warm-up, rounded ones after it, as in torch."""

    def body(rank: int) -> Any:
        found = []
        for kind, hook in WAYS:
            state = kind(None, None, 1, post_local_gradient_allreduce=False)
            wrapped = default_hooks.fp16_compress_wrapper(hook)
            found.append(gradients(hooked(state, wrapped), state, 1.001 * (1 + rank), 2))
        return found

    for rank, (mine, torchs) in enumerate(run_ranks(2, body)):
        assert mine == torchs
        assert mine[0][0] == pytest.approx(1.50195, abs=1e-5)
        assert mine[1][0] == pytest.approx([1.00098, 2.00195][rank], abs=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"static_graph": True},
    {"gradient_as_bucket_view": True},
    {"find_unused_parameters": True},
]


def values_of_training(
    rank: int, kind: Any, hook: Any, wrapper: Any, averager: Any, options: dict[str, Any]
) -> torch.Tensor:
    """Parameters after every step: micro-batches, clipping, a layer that half the ranks use."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)])
    uneven = options.get("find_unused_parameters", False)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, inputs: torch.Tensor, step: int) -> torch.Tensor:
            hidden = torch.tanh(layers[0](inputs))
            one, other = layers[1](hidden), layers[2](hidden)
            return (one if (step + rank) % 2 else other) if uneven else one + other

    model = DistributedDataParallel(Network(), bucket_cap_mb=0.0001, **options)
    state = kind(None, None, 3, post_local_gradient_allreduce=False)
    model.register_comm_hook(state, hook)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = wrapper(inner, averager(2, 3))
    random = torch.Generator().manual_seed(rank)
    found = []
    for step in range(8):
        optimizer.zero_grad(set_to_none=step % 3 == 0)
        # torch's static graph takes no pass without synchronisation before its first one with it.
        if "static_graph" not in options:
            with model.no_sync():
                model(torch.randn(4, 3, generator=random), step).pow(2).mean().backward()
        model(torch.randn(4, 3, generator=random), step).pow(2).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    return torch.stack(found)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "plain"))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_training_with_the_hook_is_torchs(size: int, options: dict[str, Any]) -> None:
    """Rule 1.10: gradients averaged in steps 0 to 2, parameters after steps 3, 5 and 7."""

    def body(rank: int) -> Any:
        averagers = (ours.PeriodicModelAverager, torch_averagers.PeriodicModelAverager)
        wrappers = (ours.PostLocalSGDOptimizer, TorchOptimizer)
        mine, other = (
            values_of_training(rank, *way, wrapper, averager, options)
            for way, wrapper, averager in zip(WAYS, wrappers, averagers, strict=True)
        )
        return mine.numpy(), other.numpy()

    results = run_ranks(size, body)
    for mine, other in results:
        # Rounding: means in another order of arithmetic, over eight steps of values below 1.
        assert abs(mine - other).max() < 1e-5
        for step in (0, 1, 2, 3, 5, 7):
            assert (mine[step] == results[0][0][step]).all()
        assert (mine[4] == results[0][0][4]).all() == (mine is results[0][0])


def trained(rank: int, stop_at: int | None) -> torch.Tensor:
    """Parameters after ten steps; everything saved, thrown away and loaded after ``stop_at``."""
    random = torch.Generator().manual_seed(rank)
    batches = torch.randn(10, 4, 3, generator=random)

    def made() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Linear(3, 2))
        state = ours.PostLocalSGDState(None, None, 4, post_local_gradient_allreduce=False)
        model.register_comm_hook(state, ours.post_localSGD_hook)
        inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, state, ours.PostLocalSGDOptimizer(inner, ours.PeriodicModelAverager(3, 4))

    model, state, optimizer = made()
    for step, batch in enumerate(batches):
        if step == stop_at:
            saved = copy.deepcopy([part.state_dict() for part in (model, state, optimizer)])
            model, state, optimizer = made()
            for part, values in zip((model, state, optimizer), saved, strict=True):
                part.load_state_dict(values)
        optimizer.zero_grad()
        model(batch).pow(2).sum().backward()
        optimizer.step()
    return torch.cat([param.detach().flatten() for param in model.parameters()])


@pytest.mark.parametrize("stop_at", [2, 6])
def test_a_resumed_training_equals_one_never_stopped_to_the_bit(stop_at: int) -> None:
    """C35: stopped in the warm-up and after it; torch's hook begins its warm-up again."""

    def body(rank: int) -> bool:
        return torch.equal(trained(rank, stop_at), trained(rank, None))

    assert run_ranks(2, body) == [True, True]


def test_a_state_takes_no_other_attribute() -> None:
    """Rule 1.8."""
    for kind, _ in WAYS:
        state = kind(None, None, 1, post_local_gradient_allreduce=False)
        with pytest.raises(AttributeError):
            state.period = 3
