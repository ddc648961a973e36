"""The gradient stage: which gradients are averaged, when, and over whom; DDP is the oracle."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo
from torch_ranks import run_ranks

ALWAYS = 1_000_000


def averager_of(comm: Any, warmup: int = ALWAYS) -> ours.PeriodicModelAverager:
    return ours.PeriodicModelAverager(ALWAYS, warmup, comm)


class Scaled(nn.Module):
    """Parameters ``a``, ``b`` and ``c``; the gradient of those used is what the model is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(3)) for _ in range(3))

    def forward(self, value: float, names: str = "abc") -> Tensor:
        return torch.stack([value * getattr(self, name).sum() for name in names]).sum()

    def gradients(self) -> list[float | None]:
        found = [param.grad for param in self.parameters()]
        return [None if grad is None else grad.unique().item() for grad in found]


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


@pytest.mark.parametrize("hosts", ["2", "1+1"])
def test_ranks_whose_gradients_become_ready_in_different_orders_never_mix(
    hosts: str,
) -> None:
    """One rank uses a before b, the other b before a; what each gives tells them apart."""

    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.ones(())) for _ in range(2))

        def forward(self, names: str) -> Tensor:
            value = torch.ones(())
            for index, name in enumerate(names):
                value = value * (getattr(self, name) if index else 10.0 * getattr(self, name))
            return value + 4.0 * self.a

    def body(comm: Any) -> Any:
        model = Chained()
        ours.GradientStage(model, averager_of(comm), block_bytes=1)
        model(["ab", "ba"][comm.rank]).backward()
        return model.a.grad.item(), model.b.grad.item()

    assert run_threads(2, body, hosts=hosts) == [(14.0, 10.0)] * 2


def test_micro_batches_add_up_before_and_after_averaging() -> None:
    """Two passes of 1 and 2 in no_sync or not: 2 and 4, whose mean is 3; a third adds 1.5."""

    def body(comm: Any) -> Any:
        found = []
        for quiet in (True, False):
            model = Scaled()
            stage = ours.GradientStage(model, averager_of(comm))
            if quiet:
                with stage.no_sync():
                    model(1.0 + comm.rank).backward()
                assert model.gradients() == [1.0 + comm.rank] * 3
            else:
                model(1.0 + comm.rank).backward()
            model(1.0 + comm.rank).backward()
            found.append(model.gradients()[0])
            with stage.no_sync():
                model(1.0 + comm.rank).backward()
            stage.average()
            found.append(model.gradients()[0])
        return found

    assert run_threads(2, body) == [[3.0, 4.5, 3.0, 4.5]] * 2


def test_a_worker_that_skips_takes_the_mean_of_the_others() -> None:
    def body(comm: Any) -> Any:
        model = Scaled()
        stage = ours.GradientStage(model, averager_of(comm))
        with stage.no_sync():
            model(1.0 + comm.rank).backward()
        assert stage.average(skip=comm.rank == 0)
        return model.gradients()

    assert run_threads(3, body) == [[2.5] * 3] * 3


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


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


def test_ranks_at_different_steps_get_an_error_on_every_rank() -> None:
    def body(comm: Any) -> None:
        model, averager = Scaled(), averager_of(comm)
        ours.GradientStage(model, averager)
        averager.step = comm.rank
        with pytest.raises(MismatchError, match="gradients of step 1.*gradients of step 2"):
            model(1.0).backward()

    run_threads(2, body)


def test_nothing_is_sent_after_the_warmup() -> None:
    def body(comm: Any) -> int:
        model = Scaled()
        ours.GradientStage(model, averager_of(comm, 0))
        before = comm.traffic.calls
        model(1.0).backward()
        return int(comm.traffic.calls - before)

    assert run_threads(2, body) == [0, 0]


def test_a_parameter_that_came_later_is_an_error() -> None:
    model = Scaled()
    model.c.requires_grad_(False)
    ours.GradientStage(model, averager_of(solo()))
    model.c.requires_grad_(True)
    with pytest.raises(ValueError, match="'c' must require a gradient when the stage is made"):
        model(1.0).backward()


def test_a_step_without_a_pass_of_the_stages_parameters_is_an_error() -> None:
    """All of them replaced: no gradient would ever be averaged, and nobody would know."""
    model, averager = Scaled(), averager_of(solo())
    stage = ours.GradientStage(model, averager)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(values, assign=True)
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = ours.PostLocalSGDOptimizer(inner, averager, gradients=stage)
    model(1.0).backward()
    with pytest.raises(ValueError, match="'a' must require a gradient when the stage is made"):
        optimizer.step()
    assert model.a.tolist() == [0.0] * 3
    assert averager.step == 0


def test_a_model_of_another_dtype_than_its_stage_is_an_error() -> None:
    model = nn.Linear(2, 1)
    ours.GradientStage(model, averager_of(solo()))
    model.double()
    with pytest.raises(TypeError, match=r"must be of torch.float32.* got one of torch.float64"):
        model(torch.ones(1, 2, dtype=torch.float64)).sum().backward()


def test_passes_within_passes_are_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    for reentrant in (True, False):
        model = layers()
        ours.GradientStage(model, averager_of(solo()), block_bytes=1)
        inputs = torch.ones(2, 5, requires_grad=True)
        middle = checkpoint(model[:2], inputs, use_reentrant=reentrant)
        loss = model[2:](middle).sum()
        if reentrant:
            with pytest.raises(RuntimeError, match="must end before another begins"):
                loss.backward()
        else:
            loss.backward()


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


def test_gradients_that_are_not_dense_are_refused() -> None:
    model = nn.Embedding(3, 2, sparse=True)
    ours.GradientStage(model, averager_of(solo()))
    with pytest.raises(TypeError, match="must be dense"):
        model(torch.tensor([1])).sum().backward()


def test_a_model_has_one_stage_and_takes_it_along_when_it_goes() -> None:
    model = Scaled()
    stage = weakref.ref(ours.GradientStage(model, averager_of(solo())))
    assert stage() is not None
    with pytest.raises(ValueError, match="one gradient stage"):
        ours.GradientStage(model, averager_of(solo()))
    del model
    gc.collect()
    assert stage() is None


@pytest.mark.parametrize(
    ("options", "error"),
    [({"after": "rank"}, ValueError), ({"block_bytes": 0}, ValueError)],
)
def test_a_stage_checks_its_arguments(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ours.GradientStage(Scaled(), averager_of(solo()), **options)
