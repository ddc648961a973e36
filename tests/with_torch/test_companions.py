"""C32 and C33: what becomes of buffers and optimizer state in a round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from localsgd import MismatchError, run_threads, solo

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
        adopted = ours.adopt(model, comm, start="keep", rules={"own": "keep"})
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


def test_options_are_checked_on_every_rank() -> None:
    def body(comm: Any) -> None:
        param = Parameter(torch.zeros(1))

        def made(inner: Any, **options: Any) -> Any:
            return ours.PostLocalSGDOptimizer(inner, averager_of(comm), **options)

        sgd = torch.optim.SGD([param], lr=0.1)
        with pytest.raises(ValueError, match="'mean' must have .* got Rprop"):
            made(torch.optim.Rprop([param]), state="mean")
        with pytest.raises(ValueError, match="state must be one of local, mean, reset"):
            made(sgd, state="average")
        with pytest.raises(TypeError, match="buffers must be"):
            made(sgd, buffers=[])
        with pytest.raises(MismatchError, match="state='mean' on rank 0; state='reset' on rank 1"):
            made(sgd, state=["mean", "reset"][comm.rank])

    run_threads(2, body)


def test_options_need_an_averager_of_ours() -> None:
    class Counter:
        step = 0

        def average_parameters(self, params: Any) -> None: ...

    inner = torch.optim.SGD([Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TypeError, match="must have an averager of localsgd"):
        ours.PostLocalSGDOptimizer(inner, Counter(), state="mean")
    optimizer = ours.PostLocalSGDOptimizer(inner, averager_of(solo()), state="reset")
    with pytest.raises(TypeError, match="make another and load"):
        copy.deepcopy(optimizer)


class Halfway(localsgd.ModelAverager):
    """Somebody's own averager of the core: every worker keeps half of its own value."""

    mix = 0.5


def test_a_subclass_of_the_cores_averager_works_in_one_line_with_every_option() -> None:
    """Values 0 and 2: mean 1, half-way 0.5 and 1.5."""

    def body(comm: Any) -> Any:
        model = nn.BatchNorm1d(1)
        adopted = ours.adopt(model, comm)
        with torch.no_grad():
            model.weight.fill_(2.0 * comm.rank)
        model.running_mean.fill_(2.0 * comm.rank)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            Halfway(localsgd.every(1), comm),
            state="mean",
            buffers=adopted.buffers,
        )
        optimizer.step()
        return model.weight.item(), model.running_mean.item(), optimizer.averager.step

    assert run_threads(2, body) == [(0.5, 1.0, 1), (1.5, 1.0, 1)]


def test_a_step_left_out_takes_part_in_the_averaging_of_gradients() -> None:
    """Gradients 1, 2, 3; rank 1 leaves out a step: all take (1 + 3) / 2 and then stay equal."""

    def body(comm: Any) -> Any:
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        averager = ours.PeriodicModelAverager(RARELY, RARELY, comm)
        stage = ours.GradientStage(model, averager)
        optimizer = ours.PostLocalSGDOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), averager, gradients=stage
        )
        if comm.rank == 1:
            optimizer.skip_step()
        else:
            model(torch.full((1, 1), 1.0 + comm.rank)).sum().backward()
            optimizer.step()
        return model.weight.item(), averager.step

    assert run_threads(3, body) == [(-2.0, 1)] * 3
