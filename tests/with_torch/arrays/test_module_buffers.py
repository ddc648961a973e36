"""C32: what becomes of a module's buffers in a round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import run_threads

RARELY = 1_000_000


def averager_of(comm: Any, period: int = RARELY) -> ours.PeriodicModelAverager:
    return ours.PeriodicModelAverager(period, 0, comm)


def test_batch_statistics_are_pooled_with_the_variance_between_workers() -> None:
    """C32. Means 0, 2, 4 and variances 1, 2, 6: mean 2, variance 9 / 3 + (4 + 0 + 4) / 3."""

    def body(comm: Any) -> Any:
        model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        adopted = ours.adopt(model, comm)
        norm = model[1]
        places = [buffer.data_ptr() for buffer in model.buffers()]
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            averager_of(comm),
            buffers=adopted.buffers,
        )
        norm.running_mean.fill_(2.0 * comm.rank)
        norm.running_var.fill_([1.0, 2.0, 6.0][comm.rank])
        norm.num_batches_tracked.fill_(5 + comm.rank)
        optimizer.step()
        assert [buffer.data_ptr() for buffer in model.buffers()] == places
        return [buffer.item() for buffer in model.buffers()]

    expected = [2.0, pytest.approx(3 + 8 / 3, rel=1e-6), 7]
    assert run_threads(3, body) == [expected] * 3


def test_batch_statistics_are_those_of_all_samples_together() -> None:
    """Momentum 1 keeps the last batch; the pooled population variance is the one of all data."""
    samples = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))

    def body(comm: Any) -> Tensor:
        model = nn.BatchNorm1d(3, momentum=1.0)
        adopted = ours.adopt(model, comm)
        inner = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager_of(comm), buffers=adopted.buffers)
        model(samples[comm.rank])
        # torch keeps the unbiased variance of a batch.
        model.running_var.mul_(49 / 50)
        optimizer.flush()
        return torch.stack([model.running_mean, model.running_var])

    variance, mean = torch.var_mean(samples.reshape(-1, 3), 0, correction=0)
    for found in run_threads(2, body):
        torch.testing.assert_close(found, torch.stack([mean, variance]))


def test_other_buffers_have_rules_of_their_own() -> None:
    """Floats are averaged, integers become the largest, masks and what is to be kept stay."""

    class Remembering(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.weight = Parameter(torch.zeros(1))
            self.register_buffer("scale", torch.tensor([1.0 + rank]))
            self.register_buffer("seen", torch.tensor(3 - rank))
            self.register_buffer("own", torch.tensor([1.0 + rank]))
            self.register_buffer("mask", torch.tensor([rank == 0]))
            self.register_buffer("narrow", torch.tensor([1.0 + rank], dtype=torch.bfloat16))

    def body(comm: Any) -> Any:
        model = Remembering(comm.rank)
        kept: Any = {"own": "keep", "mask": "keep"}
        adopted = ours.adopt(model, comm, start="keep", rules=kept)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            averager_of(comm),
            buffers=adopted.buffers,
        )
        model.scale = model.scale.clone()  # torch lets a module put another tensor there
        optimizer.step()
        return [buffer.item() for buffer in model.buffers()]

    for rank, found in enumerate(run_threads(2, body)):
        assert found == [1.5, 3, 1.0 + rank, rank == 0, 1.5]


def test_a_mask_of_infinities_stays_what_it_is() -> None:
    """The causal mask of transformers; its mean would be NaN, and every loss from then on."""

    def body(comm: Any) -> Any:
        model = nn.Linear(1, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(3)
        model.register_buffer("mask", mask.clone())
        model.register_buffer("scale", torch.tensor([1.0 + comm.rank]))
        adopted = ours.adopt(model, comm, start="keep")
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            averager_of(comm),
            buffers=adopted.buffers,
        )
        optimizer.step()
        return torch.equal(model.mask, mask), model.scale.item()

    assert run_threads(3, body) == [(True, 2.0)] * 3


def test_statistics_that_are_not_finite_reach_all() -> None:
    """A diverged model does not look like a sound one, and can be adopted."""

    def body(comm: Any) -> Any:
        model = nn.BatchNorm1d(2)
        model.running_mean[0] = float("nan")
        adopted = ours.adopt(model, comm)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            averager_of(comm),
            buffers=adopted.buffers,
        )
        model.running_mean[1] = 2.0 * comm.rank
        optimizer.step()
        return [str(value) for value in model.running_mean.tolist()]

    assert run_threads(2, body) == [["nan", "1.0"]] * 2


def test_identical_replicas_keep_the_bits_of_their_buffers() -> None:
    def body(comm: Any) -> bool:
        model = nn.BatchNorm1d(1000)
        model.running_mean.copy_(torch.randn(1000, generator=torch.Generator().manual_seed(1)))
        model.running_var.copy_(torch.rand(1000, generator=torch.Generator().manual_seed(2)))
        expected = copy.deepcopy(model.state_dict())
        adopted = ours.adopt(model, comm)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0),
            averager_of(comm),
            buffers=adopted.buffers,
        )
        optimizer.step()
        return all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)

    assert run_threads(3, body) == [True] * 3
