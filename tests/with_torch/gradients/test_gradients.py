"""The gradient stage: which gradients are averaged, when, and over whom; DDP is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import localsgd.torch as ours
from localsgd import run_threads
from torch_gradients import Scaled, averager_of, layers
from torch_ranks import run_ranks


@pytest.mark.parametrize("hosts", ["1", "2", "1+1", "3", "2+1", "4", "2+2"])
@pytest.mark.parametrize("block_bytes", [1, 16, 1 << 20])
def test_gradients_are_means_in_the_warmup_and_then_left_alone(
    hosts: str, block_bytes: int
) -> None:
    """Ranks give 1, 2, …: in the warm-up (size + 1) / 2."""
    size = sum(map(int, hosts.split("+")))

    def body(comm: Any) -> Any:
        model, averager = Scaled(), averager_of(comm, 2)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager)
        ours.GradientStage(model, averager, block_bytes=block_bytes)
        found = []
        for _ in range(4):
            optimizer.zero_grad()
            model(1.0 + comm.rank).backward()
            found.append(model.gradients())
            averager.step += 1
        return found

    mean = [(size + 1) / 2] * 3
    for rank, found in enumerate(run_threads(size, body, hosts=hosts)):
        assert found == [mean, mean, [1.0 + rank] * 3, [1.0 + rank] * 3]


def test_after_the_warmup_a_host_may_go_on() -> None:
    """Hosts of two and one: (1 + 2) / 2, and 3."""

    def body(comm: Any) -> Any:
        model, averager = Scaled(), averager_of(comm, 1)
        ours.GradientStage(model, averager, after="host")
        found = []
        for _ in range(2):
            model.zero_grad()
            model(1.0 + comm.rank).backward()
            found.append(model.gradients()[0])
            averager.step += 1
        return found

    assert run_threads(3, body, hosts="2+1") == [[2.0, 1.5], [2.0, 1.5], [2.0, 3.0]]


@pytest.mark.parametrize("hosts", ["2", "1+1"])
def test_parameters_that_some_or_all_did_not_use_never_mix(
    hosts: str,
) -> None:
    """Rank r uses those that it is told to; the others count as 0, and what nobody used is None."""

    def body(comm: Any) -> Any:
        model = Scaled()
        ours.GradientStage(model, averager_of(comm), block_bytes=1)
        model(2.0, ["a", "c"][comm.rank]).backward()
        first = model.gradients()
        model.zero_grad()
        model(1.0 + comm.rank, ["abc", "cba"][comm.rank]).backward()
        second = model.gradients()
        model.zero_grad()
        model(2.0, ["a", "b"][comm.rank]).backward()
        return first, second, model.gradients()

    expected = ([1.0, None, 1.0], [1.5, 1.5, 1.5], [1.0, 1.0, None])
    assert run_threads(2, body, hosts=hosts) == [expected] * 2


def test_a_worker_that_skips_takes_the_mean_of_the_others() -> None:
    def body(comm: Any) -> Any:
        model = Scaled()
        stage = ours.GradientStage(model, averager_of(comm))
        with stage.no_sync():
            model(1.0 + comm.rank).backward()
        assert stage.average(skip=comm.rank == 0)
        return model.gradients()

    assert run_threads(3, body) == [[2.5] * 3] * 3


@pytest.mark.parametrize("size", [2, 3, 4])
def test_synchronous_training_is_ddps(size: int) -> None:
    """Different data on every rank, momentum, clipping and micro-batches; ranks end bit-equal."""

    def trained(rank: int, model: nn.Module, quiet: Any) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        random = torch.Generator().manual_seed(rank)
        for _ in range(6):
            optimizer.zero_grad()
            with quiet():
                model(torch.randn(4, 5, generator=random)).pow(2).sum().backward()
            model(torch.randn(4, 5, generator=random)).pow(2).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return torch.cat([param.detach().flatten() for param in model.parameters()])

    def body(rank: int) -> Any:
        model = layers()
        stage = ours.GradientStage(model, averager_of(None), block_bytes=64)
        mine = trained(rank, model, stage.no_sync)
        torchs = DistributedDataParallel(layers())
        return mine.numpy(), trained(rank, torchs, torchs.no_sync).numpy()

    results = run_ranks(size, body)
    for mine, torchs in results:
        assert abs(mine - torchs).max() < 2e-6
        assert (mine == results[0][0]).all()


def test_an_overflow_on_one_rank_is_skipped_by_all_in_the_warmup() -> None:
    """As under DDP: the mean holds the infinity. By hand: of three steps of 1.5 one is left out."""

    def body(comm: Any) -> Any:
        model = Scaled()
        averager = averager_of(comm)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager)
        ours.GradientStage(model, averager)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(3):
            optimizer.zero_grad()
            overflow = (comm.rank, step) == (0, 1)
            scaler.scale(model(float("inf") if overflow else 1.0 + comm.rank)).backward()
            scaler.step(optimizer)
            scaler.update()
        return model.a.tolist(), averager.step, scaler.get_scale()

    assert run_threads(2, body) == [([-3.0] * 3, 3, 2.0)] * 2


def test_dtypes_are_averaged_each_in_its_own() -> None:
    def body(comm: Any) -> Any:
        model = Scaled()
        model.b = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        model.c = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        ours.GradientStage(model, averager_of(comm))
        model(1.0 + comm.rank).backward()
        return model.gradients(), [str(param.grad.dtype) for param in model.parameters()]

    dtypes = ["torch.float32", "torch.float64", "torch.bfloat16"]
    assert run_threads(2, body) == [([1.5] * 3, dtypes)] * 2


def test_nothing_is_sent_after_the_warmup() -> None:
    def body(comm: Any) -> int:
        model = Scaled()
        ours.GradientStage(model, averager_of(comm, 0))
        before = comm.traffic.calls
        model(1.0).backward()
        return int(comm.traffic.calls - before)

    assert run_threads(2, body) == [0, 0]


def test_samples_of_a_step_left_out_weigh_in_no_round() -> None:
    """Rounds after steps 1 and 3; in step 2 rank 1 goes to -3 and rank 0 leaves out 5 samples.

    Each is a host of its own. Weights 1 and 2: the mean of 0 and -3 is -2.
    """

    def body(comm: Any) -> Any:
        model = Scaled()
        averager = ours.PeriodicModelAverager(2, 0, comm)
        stage = ours.GradientStage(model, averager, after="host")
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager, gradients=stage)
        for step in range(3):
            optimizer.zero_grad()
            leaves_out = (comm.rank, step) == (0, 1)
            averager.record_samples(5 if leaves_out else 1)
            model(3.0 if (comm.rank, step) == (1, 1) else 0.0).backward()
            if leaves_out:
                optimizer.skip_step()
            else:
                optimizer.step()
        return model.a.tolist()

    assert run_threads(2, body, hosts="1+1") == [[-2.0] * 3] * 2


def test_samples_of_the_warmup_weigh_in_no_round() -> None:
    """Step 1 is the warm-up; the round after step 2 has 0 and -3 by weights 1 and 2: -2."""

    def body(comm: Any) -> Any:
        model, averager = Scaled(), averager_of(comm, 1)
        stage = ours.GradientStage(model, averager)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager, gradients=stage)
        for value, samples in ((0.0, 7 - 6 * comm.rank), (3.0 * comm.rank, 1 + comm.rank)):
            optimizer.zero_grad()
            averager.record_samples(samples)
            model(value).backward()
            optimizer.step()
        return model.a.tolist()

    assert run_threads(2, body) == [[-2.0] * 3] * 2


def test_a_step_that_all_leave_out_is_none() -> None:
    """Nobody steps, nobody hangs, all count; the samples of the step are taken back."""

    def body(comm: Any) -> Any:
        model, averager = Scaled(), averager_of(comm)
        stage = ours.GradientStage(model, averager)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = ours.PostLocalSGDOptimizer(inner, averager, gradients=stage)
        averager.record_samples(3)
        optimizer.skip_step()
        averager.record_samples(1 + 2 * comm.rank)
        model(1.0 + comm.rank).backward()
        optimizer.step()
        return model.a.tolist(), averager.step

    # Weights 1 and 3: (1 + 3 * 2) / 4.
    assert run_threads(2, body) == [([-1.75] * 3, 2)] * 2
