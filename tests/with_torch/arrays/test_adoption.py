"""A model in place: the objects, addresses, formats and ties that it had, and equal values."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo
from torch_ranks import run_ranks

# torch's random numbers are one stream of the process: workers that are threads take turns.
_DRAWING = threading.Lock()


class Network(nn.Module):
    """A convolution in channels_last, normalisation, and a head tied to an embedding."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with _DRAWING:
            torch.manual_seed(seed)
            self.convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
            self.norm = nn.BatchNorm2d(4)
            self.embedding = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.unused = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(self.convolution(images)).mean((2, 3)))
        return found


def loss_of(model: nn.Module, rank: int) -> torch.Tensor:
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(rank))
    loss: torch.Tensor = model(images).pow(2).sum()
    return loss


def addresses(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]]


def test_nothing_moves_after_adoption() -> None:
    """Through training, rounds, loads and both manners of forgetting gradients."""

    def body(comm: Any) -> Any:
        model = Network(seed=comm.rank)
        before = list(model.parameters())
        ours.adopt(model, comm)
        places = addresses(model)
        averager = ours.PeriodicModelAverager(2, 4, comm)
        ours.GradientStage(model, averager)
        inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager)
        gradients = set()
        for step in range(6):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            loss_of(model, comm.rank).backward()
            if step < 4:
                gradients.add(model.convolution.weight.grad.data_ptr())
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            model.load_state_dict(model.state_dict())
            assert addresses(model) == places
        assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
        assert model.convolution.weight.is_contiguous(memory_format=torch.channels_last)
        assert model.head.weight is model.embedding.weight
        return len(gradients)

    assert run_threads(3, body) == [1, 1, 1]


def test_all_start_from_the_values_of_rank_0() -> None:
    """Parameters and buffers; with start="keep" each from its own."""

    def body(comm: Any) -> Any:
        found = []
        for start in ("broadcast", "keep"):
            model = nn.BatchNorm1d(2)
            with torch.no_grad():
                model.weight.fill_(1.0 + comm.rank)
                model.running_mean.fill_(5.0 + comm.rank)
            ours.adopt(model, comm, start=start)
            found.append((model.weight[0].item(), model.running_mean[1].item()))
        return found

    for rank, found in enumerate(run_threads(3, body)):
        assert found == [(1.0, 5.0), (1.0 + rank, 5.0 + rank)]


def test_training_is_to_the_bit_what_it_is_without() -> None:
    plain, adopted = Network(seed=0), Network(seed=0)
    ours.GradientStage(adopted, ours.PeriodicModelAverager(1_000, 1_000, solo()))
    for model in (plain, adopted):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            for batch in range(2):
                loss_of(model, 2 * step + batch).backward()
            optimizer.step()
    state, expected = adopted.state_dict(), plain.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert adopted.unused.weight.grad is None


def test_what_is_saved_or_copied_is_on_its_own() -> None:
    model = Network(seed=0)
    ours.adopt(model, solo())
    loss_of(model, 0).backward()
    file = io.BytesIO()
    torch.save(model.convolution.weight, file)
    assert len(file.getvalue()) < 3000
    file.seek(0)
    assert torch.equal(torch.load(file), model.convolution.weight)
    copied = copy.deepcopy(model)
    copied.zero_grad()
    loss_of(copied, 1).backward()
    with torch.no_grad():
        for tensor in [*copied.parameters(), *copied.buffers()]:
            tensor.zero_()
        for param in copied.parameters():
            if param.grad is not None:
                param.grad.zero_()
    assert model.convolution.weight.any() and model.convolution.weight.grad.any()
    assert model.norm.running_var.any()


def test_models_that_differ_are_told_by_the_first_name_on_every_rank() -> None:
    def body(comm: Any) -> None:
        layers = [nn.Linear(2, 3), nn.Linear(3, 2 + comm.rank)]
        with pytest.raises(MismatchError, match=r"'1.weight' float32\[2, 3\].* on rank 0"):
            ours.adopt(nn.Sequential(*layers), comm)
        buffers = nn.BatchNorm1d(2, track_running_stats=comm.rank == 1)
        with pytest.raises((MismatchError, ValueError)):
            ours.adopt(buffers, comm)

    run_threads(2, body)


def test_adopting_twice_is_adopting_once_and_only_by_the_same_workers() -> None:
    def body(comm: Any) -> None:
        model = nn.Linear(2, 2)
        assert ours.adopt(model, comm) is ours.adopt(model, comm)
        with pytest.raises(ValueError, match="must have been adopted by"):
            ours.adopt(model, comm.split(0))

    run_threads(2, body)


def replaced(model: nn.Module) -> None:
    """As a load of a checkpoint without a copy does it."""
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def parametrized(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model)


@pytest.mark.parametrize("change", [replaced, parametrized])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_parameters_that_a_model_got_since_have_their_gradients_averaged(
    size: int, change: Any
) -> None:
    """Every rank's gradient is linear in what it is given: the mean is that of the mean rank."""

    def body(comm: Any) -> Any:
        model = nn.Linear(2, 1, bias=False)
        ours.adopt(model, comm)
        change(model)
        averager = ours.PeriodicModelAverager(1_000_000, 1_000_000, comm)
        ours.GradientStage(model, averager)
        gradients = []
        for value in (1.0 + comm.rank, (comm.size + 1) / 2):
            model.zero_grad()
            model(torch.full((1, 2), value)).sum().backward()
            gradients += [param.grad.tolist() for param in model.parameters()]
        half = len(gradients) // 2
        return all(
            torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-6)
            for one, other in zip(gradients[:half], gradients[half:], strict=True)
        )

    assert run_threads(size, body) == [True] * size


def test_adopting_again_gives_new_parameters_the_values_of_rank_0_and_leaves_the_others() -> None:
    def body(comm: Any) -> Any:
        model = nn.ModuleList([nn.Linear(1, 1, bias=False)])
        adopted = ours.adopt(model, comm)
        model.append(nn.Linear(1, 1, bias=False))
        for param in model.parameters():
            param.detach().fill_(5.0 + comm.rank)
        again = ours.adopt(model, comm)
        assert again is not adopted
        assert ours.adopt(model, comm) is again
        return [param.item() for param in model.parameters()]

    assert run_threads(3, body) == [[5.0 + rank, 5.0] for rank in range(3)]


def test_parameters_that_an_averager_has_placed_keep_their_places() -> None:
    def body(comm: Any) -> Any:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        ours.average_parameters(reversed(list(model.parameters())), comm)
        places = addresses(model)
        ours.adopt(model, comm)
        averager = ours.PeriodicModelAverager(1_000_000, 1_000_000, comm)
        ours.GradientStage(model, averager)
        model(torch.full((1, 2), 1.0 + comm.rank)).sum().backward()
        return addresses(model) == places, model[1].bias.grad.tolist()

    assert run_threads(2, body) == [(True, [1.0, 1.0])] * 2


@pytest.mark.parametrize(
    ("model", "arguments", "error"),
    [
        (nn.ReLU(), {}, ValueError),
        (nn.Linear(2, 2), {"start": "check"}, ValueError),
        (torch.ones(2), {}, TypeError),
    ],
)
def test_what_cannot_be_adopted_is_refused(
    model: Any, arguments: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ours.adopt(model, solo(), **arguments)


def test_a_rank_outside_of_the_group_trains_by_itself() -> None:
    """Ranks 0 and 1 go from 0 and 1 to their mean; rank 2, outside, steps as torch alone."""

    def body(rank: int) -> Any:
        group = dist.new_group([0, 1])
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
        linear = model[0]
        with torch.no_grad():
            linear.weight.fill_(float(rank))
        adopted = ours.adopt(model, group, start="keep")
        averager = ours.PeriodicModelAverager(2, 1, group)
        stage = ours.GradientStage(model, averager, after="host")
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD([linear.weight], lr=1.0),
            averager,
            gradients=stage,
            state="mean",
            buffers=adopted.buffers,
        )
        found = []
        for _ in range(2):
            optimizer.zero_grad()
            (linear.weight * (rank + 1.0)).sum().backward()
            optimizer.step()
            found.append(linear.weight.item())
        optimizer.skip_step()
        optimizer.flush()
        again = ours.adopt(model, group)
        return found, averager.step, adopted.buffers is None, len(list(again.params))

    inside, other, outside = run_ranks(3, body)
    # The gradients 1 and 2 have mean 1.5, in the warm-up and then on the host.
    assert inside == ([-1.5, -2.5], 3, False, 3)
    assert other == ([-0.5, -2.5], 3, False, 3)
    assert outside == ([-1.0, -4.0], 3, True, 0)
