"""What holds for the workers there are: alone here, and under mpirun and torchrun in turn.

``test_launched.py`` runs this file on several ranks of either.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import localsgd
import localsgd.torch as ours
from localsgd import Communicator, MismatchError

STEPS, RARELY = 16, 1_000_000
LR, MOMENTUM = 0.05, 0.9


@pytest.fixture(scope="module")
def comm() -> Communicator:
    torch.set_num_threads(1)
    return ours.world()


def test_the_world_has_as_many_workers_as_were_launched(comm: Communicator) -> None:
    assert comm.size == int(os.environ.get("LOCALSGD_TEST_RANKS", "1"))
    assert dist.is_initialized() or ours.world() is localsgd.world()


def test_an_average_is_the_mean_in_place_with_equal_bits(comm: Communicator) -> None:
    values = torch.stack([torch.linspace(r, 2 * r + 1, 1001) for r in range(comm.size)])
    param = nn.Parameter(values[comm.rank].clone())
    ours.average_parameters([param], None)
    address = param.data_ptr()
    torch.testing.assert_close(param.detach(), values.mean(0))
    assert len(set(comm.collect(param.tolist().__repr__()))) == 1
    ours.average_parameters([param], None)
    assert param.data_ptr() == address


def test_what_is_not_trained_is_rank_0s_and_a_spectral_norm_holds(comm: Communicator) -> None:
    """A frozen layer, a mask, and the vectors of an averaged weight, equal on all processes."""
    torch.manual_seed(comm.rank)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5)), nn.Linear(5, 2))
    model[1].requires_grad_(False)
    model.register_buffer("mask", torch.rand(5) < 0.5)
    adopted = ours.adopt(model)
    optimizer = ours.PostLocalSGDOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        ours.PeriodicModelAverager(RARELY),
        buffers=adopted.buffers,
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).pow(2).mean().backward()
        optimizer.step()
    optimizer.flush()
    model.eval()
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1.0, rel=0.02)
    held = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    assert comm.collect(held) == [held] * comm.size


def network() -> nn.Sequential:
    random = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=random) * 0.5)
    return model


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    random = torch.Generator().manual_seed(1000 * rank + step)
    inputs, targets = (torch.randn(4, width, generator=random) for width in (5, 3))
    loss: Tensor = nn.functional.mse_loss(model(inputs), targets)
    return loss


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def written_out(size: int, warmup: int, groups_at: Callable[[int], Any]) -> list[list[Tensor]]:
    """Post-local SGD with momentum as its paper defines it: all workers' parameters, by step."""
    models = [network() for _ in range(size)]
    momenta = [torch.zeros_like(flat(model.parameters())) for model in models]
    history = []
    for step in range(STEPS):
        gradients = []
        for rank, model in enumerate(models):
            model.zero_grad()
            loss_of(model, rank, step).backward()  # type: ignore[no-untyped-call]
            gradients.append(flat(param.grad for param in model.parameters()))
        if step < warmup:
            gradients = [torch.stack(gradients).mean(0)] * size
        values = []
        for rank, model in enumerate(models):
            momenta[rank] = MOMENTUM * momenta[rank] + gradients[rank]
            values.append(flat(model.parameters()) - LR * momenta[rank])
        for group in groups_at(step):
            mean = torch.stack([values[rank] for rank in group]).mean(0)
            for rank in group:
                values[rank] = mean
        for model, value in zip(models, values, strict=True):
            nn.utils.vector_to_parameters(value.clone(), model.parameters())
        history.append(values)
    return history


def assert_trains_as_written(
    comm: Communicator, averager: Any, warmup: int, groups_at: Callable[[int], Any]
) -> None:
    model = network()
    optimizer = ours.PostLocalSGDOptimizer(
        torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM),
        averager,
        gradients=ours.GradientStage(model, averager, block_bytes=64),
    )
    for step, expected in enumerate(written_out(comm.size, warmup, groups_at)):
        optimizer.zero_grad()
        loss_of(model, comm.rank, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        # Rounding: of sums in another order, over so many steps.
        torch.testing.assert_close(
            flat(model.parameters()), expected[comm.rank], rtol=1e-5, atol=2e-6
        )


@pytest.mark.filterwarnings("ignore:period 1:UserWarning")
@pytest.mark.parametrize("warmup", [0, 4, 13])
@pytest.mark.parametrize("period", [1, 3, 4])
def test_post_local_training_is_what_its_paper_defines(
    comm: Communicator, period: int, warmup: int
) -> None:
    """Gradients averaged in the warm-up, parameters after it; momentum and data of one's own."""

    def groups_at(step: int) -> Sequence[Sequence[int]]:
        due = step >= warmup and (step - warmup) % period == 0
        return [range(comm.size)] if due else []

    averager = ours.PeriodicModelAverager(period, warmup)
    assert_trains_as_written(comm, averager, warmup, groups_at)


@pytest.mark.parametrize("warmup", [0, 4, 13])
@pytest.mark.parametrize("periods", [(2, 4), (3, 4)])
def test_hierarchical_training_is_what_its_paper_defines(
    comm: Communicator, periods: tuple[int, int], warmup: int
) -> None:
    """Hosts often, all rarely."""
    hosts = comm.topology.hosts

    def groups_at(step: int) -> Sequence[Sequence[int]]:
        if step >= warmup and step % periods[1] == 0:
            return [range(comm.size)]
        return hosts if step >= warmup and step % periods[0] == 0 else []

    levels: Any = {periods[0]: "host", periods[1]: "world"}
    assert_trains_as_written(
        comm, ours.HierarchicalModelAverager(levels, warmup), warmup, groups_at
    )


def test_buffers_and_state_are_averaged_along(comm: Communicator) -> None:
    """Values r: means of 0 … n-1; the variances of 1 plus that of the means."""
    model = nn.BatchNorm1d(2)
    adopted = ours.adopt(model)
    inner = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    averager = ours.PeriodicModelAverager(RARELY)
    optimizer = ours.PostLocalSGDOptimizer(inner, averager, state="mean", buffers=adopted.buffers)
    model.running_mean.fill_(float(comm.rank))  # type: ignore[union-attr, operator]
    for param in model.parameters():
        param.grad = torch.full((2,), float(comm.rank))
    optimizer.step()
    ranks = torch.arange(float(comm.size))
    assert model.running_mean.tolist() == [ranks.mean().item()] * 2  # type: ignore[union-attr]
    expected = (1 + ranks.var(correction=0)).expand(2)
    torch.testing.assert_close(model.running_var, expected)
    assert inner.state[model.weight]["momentum_buffer"].tolist() == [ranks.mean().item()] * 2


def test_workers_with_unequal_data_end_together(comm: Communicator) -> None:
    """Rank r has r + 1 batches of gradient 1, and weighs as much: Σ (r + 1)² / Σ (r + 1)."""
    param = nn.Parameter(torch.zeros(1))
    averager = ours.PeriodicModelAverager(RARELY, RARELY)
    optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
    with optimizer.uneven():
        for _ in range(comm.rank + 1):
            averager.record_samples(1)
            param.grad = torch.ones(1)
            optimizer.step()
    counts = range(1, comm.size + 1)
    assert param.item() == pytest.approx(-sum(n * n for n in counts) / sum(counts))
    assert averager.step == comm.size


@contextmanager
def gloo(comm: Communicator) -> Iterator[None]:
    """A group of torch beside MPI; torchrun's own, if that is where we are."""
    if dist.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        store = comm.collect(folder)[0]
        dist.init_process_group(
            "gloo", init_method=f"file://{store}/store", rank=comm.rank, world_size=comm.size
        )
        yield
        dist.destroy_process_group()
        comm.barrier()


def test_the_hook_averages_under_ddp(comm: Communicator) -> None:
    """In the warm-up (n + 1) / 2, then one's own."""
    with gloo(comm):
        model = nn.Linear(1, 1, bias=False)
        hooked = DistributedDataParallel(model)
        state = ours.PostLocalSGDState(comm, None, 2, post_local_gradient_allreduce=False)
        hooked.register_comm_hook(state, ours.post_localSGD_hook)
        found = []
        for _ in range(3):
            model.zero_grad()
            hooked(torch.full((1, 1), 1.0 + comm.rank)).sum().backward()
            found.append(model.weight.grad.item())  # type: ignore[union-attr]
    mean = (comm.size + 1) / 2
    assert found == [mean, mean, 1.0 + comm.rank]


def test_an_averager_of_the_core_works_in_one_line(comm: Communicator) -> None:
    param = nn.Parameter(torch.full((3,), float(comm.rank)))
    averager = localsgd.ModelAverager(localsgd.every(2), comm)
    optimizer = ours.PostLocalSGDOptimizer(torch.optim.SGD([param], lr=1.0), averager)
    for _ in range(2):
        param.grad = torch.ones(3)
        optimizer.step()
    assert param.tolist() == [(comm.size - 1) / 2 - 2] * 3


def test_ranks_that_differ_are_told_at_once(comm: Communicator) -> None:
    shape = 2 + (comm.rank == comm.size - 1 > 0)
    param = nn.Parameter(torch.ones(shape))
    if comm.size > 1:
        with pytest.raises(MismatchError, match="float32"):
            ours.PeriodicModelAverager(2).average_parameters([param])
    same = nn.Parameter(torch.ones(2))
    assert ours.PeriodicModelAverager(2).average_parameters([same])
