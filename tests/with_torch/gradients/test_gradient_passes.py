"""Which backward passes the gradient stage follows, in which order, and which it refuses."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo
from torch_gradients import Scaled, averager_of, layers


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


def test_ranks_at_different_steps_get_an_error_on_every_rank() -> None:
    def body(comm: Any) -> None:
        model, averager = Scaled(), averager_of(comm)
        ours.GradientStage(model, averager)
        averager.step = comm.rank
        with pytest.raises(MismatchError, match="gradients of step 1.*gradients of step 2"):
            model(1.0).backward()

    run_threads(2, body)


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
