"""SCAFFOLD's local steps on whatever torch's may meet: gradients, scalers, layouts and modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import Communicator, run_threads, solo
from torch_modes import STEPPING, check_trainable, outside

PERIOD = 4
Gradients = Callable[[Parameter, int], None]


def controlled(comm: Any, params: list[Parameter], **options: Any) -> Any:
    inner = torch.optim.SGD(params, lr=0.25, **options)
    return ours.SCAFFOLD(inner, PERIOD, process_group=comm)


def trained(comm: Any, gradients: Gradients, **options: Any) -> list[Any]:
    """The values of a parameter after each of nine steps with the gradients of a function."""
    param = Parameter(torch.ones(3, 2))
    training = controlled(comm, [param], **options)
    found = []
    for step in range(9):
        gradients(param, comm.rank + step)
        training.step()
        found.append(param.tolist())
    return found


def waves(param: Tensor, number: int) -> Tensor:
    return torch.sin(param.detach() * (1 + number % 3) + number)


def row(param: Parameter, number: int) -> Tensor:
    place, values = number % 3, waves(param, number)[number % 3][None]
    return torch.sparse_coo_tensor([[place]], values, param.shape, check_invariants=True)


def sparse(param: Parameter, number: int) -> None:
    param.grad = row(param, number)


def dense(param: Parameter, number: int) -> None:
    param.grad = row(param, number).to_dense()


def missing(param: Parameter, number: int) -> None:
    param.grad = waves(param, number) if number % 2 else None


def zero(param: Parameter, number: int) -> None:
    param.grad = waves(param, number) * (number % 2)


@pytest.mark.parametrize(
    ("given", "meant", "decay"),
    [(sparse, dense, 0.0), (missing, zero, 0.0), (missing, zero, 0.5)],
)
def test_gradients_that_are_sparse_or_missing_are_those_that_they_stand_for(
    given: Gradients, meant: Gradients, decay: float
) -> None:
    """A control moves rows and parameters that have no gradient in a step."""

    def work(comm: Communicator) -> list[Any]:
        found = [trained(comm, each, weight_decay=decay) for each in (given, meant)]
        assert found[0] == found[1]
        return found[0]

    first, second, _ = run_threads(3, work)
    assert first[3] == second[3] and first[4] != second[4]


def test_gradients_are_what_they_were_after_a_step() -> None:
    """Also after one that fails; so gradients that nobody clears add up as without SCAFFOLD."""

    def work(comm: Communicator) -> None:
        given = torch.full((3,), 1.0 + comm.rank)
        param, unused = Parameter(torch.zeros(3)), Parameter(torch.zeros(2))
        training = controlled(comm, [param, unused])
        param.grad = given
        for _ in range(5):
            training.step()
            assert param.grad is given and unused.grad is None
            assert given.tolist() == [1.0 + comm.rank] * 3
        training.param_groups[0].update(weight_decay="none")
        with pytest.raises(TypeError):
            training.step()
        assert param.grad is given and unused.grad is None

    run_threads(2, work)


def test_what_is_frozen_is_not_moved() -> None:
    """From the first step on, or later, when it has a control variate."""

    def work(comm: Communicator) -> None:
        params = [Parameter(torch.zeros(2)) for _ in range(3)]
        params[0].requires_grad_(False)
        training = controlled(comm, params)
        for step in range(2 * PERIOD):
            if step == PERIOD + 1:
                params[1].requires_grad_(False)
                training.zero_grad()
                before = params[1].tolist()
            for param in params:
                param.grad = torch.full((2,), 1.0 + comm.rank) if param.requires_grad else None
            training.step()
        assert params[0].tolist() == [0.0, 0.0] and params[0] not in training.state
        assert params[1].tolist() == before
        assert params[2].tolist() == [-0.25 * 1.5 * 2 * PERIOD] * 2

    run_threads(2, work)


def test_parameters_on_one_memory_are_corrected_once() -> None:
    """As one parameter that has the sum of their gradients; all numbers are exact.

    Gradients 1 and 0 on rank 0, 2 and 2 on rank 1: sums 1 and 4, whose mean is 2.5.
    """

    def work(comm: Communicator) -> None:
        one = Parameter(torch.zeros(2))
        tied = [one, Parameter(one.data)]
        training = controlled(comm, tied)
        for step in range(3 * PERIOD):
            tied[0].grad = torch.full((2,), 1.0 + comm.rank)
            tied[1].grad = torch.full((2,), 2.0 * comm.rank)
            training.step()
            alone = 1.0 + 3.0 * comm.rank
            moves = min(step + 1, PERIOD - 1) * alone if step + 1 < PERIOD else 2.5 * (step + 1)
            assert one.tolist() == tied[1].tolist() == [-0.25 * moves] * 2

    run_threads(2, work)


def test_in_a_warm_up_nothing_is_learned() -> None:
    """Then training is as if it began there: only local steps count for what is."""

    def work(comm: Communicator) -> None:
        params = [Parameter(torch.ones(2)) for _ in range(2)]
        options = {"process_group": comm, "warmup_steps": 3}
        whole = ours.SCAFFOLD(torch.optim.SGD([params[0]], lr=0.1), PERIOD, **options)
        for _ in range(3):
            params[0].grad = torch.full((2,), 0.5)
            whole.step()
        params[1].detach().copy_(params[0].detach())
        later = controlled(comm, [params[1]])
        later.param_groups[0]["lr"] = 0.1
        for step in range(3 * PERIOD):
            for param, training in zip(params, (whole, later), strict=True):
                param.grad = waves(param, step + comm.rank)
                training.step()
            assert torch.equal(*params)

    run_threads(2, work)


def test_a_closure_gives_the_gradients() -> None:
    """Called once a step, with gradients recorded; its loss is returned."""

    def work(comm: Communicator) -> None:
        def loss_of(param: Parameter) -> Tensor:
            loss: Tensor = ((param - comm.rank) ** 2).sum()
            return loss

        params = [Parameter(torch.ones(3)) for _ in range(2)]
        by_closure, plain = (controlled(comm, [param]) for param in params)
        calls: list[float] = []

        def closure() -> Tensor:
            by_closure.zero_grad()
            loss = loss_of(params[0])
            loss.backward()  # type: ignore[no-untyped-call]
            calls.append(loss.item())
            return loss

        for step in range(9):
            assert by_closure.step(closure).item() == calls[step]
            plain.zero_grad()
            loss_of(params[1]).backward()  # type: ignore[no-untyped-call]
            plain.step()
            assert torch.equal(*params)
        assert len(calls) == 9

    run_threads(2, work)


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("way", ["foreach", "fused"])
def test_a_scaler_unscales_before_the_correction(way: str, unscaled: bool) -> None:
    """By a power of two, so that nothing is rounded. A step that rank 0 leaves out counts on all:

    ten steps by 0.25 in two rounds of four and two more.
    """

    def work(comm: Communicator) -> None:
        def train(scaled: bool) -> tuple[list[Any], float, int]:
            param = Parameter(torch.ones(3))
            training = controlled(comm, [param], **{way: True})
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
            found = []
            for step in range(10):
                training.zero_grad()
                skips = (comm.rank, step) == (0, 5)
                loss = ((param - comm.rank) ** 2).sum() * (float("inf") if skips else 1.0)
                scaler.scale(loss).backward()
                if skips and not scaled:
                    training.skip_step()
                else:
                    if unscaled:
                        scaler.unscale_(training)
                    scaler.step(training)
                    scaler.update()
                found.append(param.tolist())
            sum_of_rates = training.state_dict()["param_groups"][0]["sum_of_rates"]
            return found, sum_of_rates, training.averager.averager.rounds

        assert train(True) == train(False)
        assert train(True)[1:] == (0.5, 2)

    run_threads(2, work)


def test_layouts_in_memory_and_complex_numbers() -> None:
    """A weight of channels last has a plain one's values, a complex one those of its parts."""

    def work(comm: Communicator) -> None:
        start = torch.arange(48, dtype=torch.float32).reshape(2, 3, 4, 2) / 48
        rows = Parameter(start.clone())
        channels = Parameter(start.clone(memory_format=torch.channels_last))
        numbers = Parameter(torch.view_as_complex(start.clone()))
        trainings = [controlled(comm, [param]) for param in (rows, channels, numbers)]
        for step in range(9):
            for param in (rows, channels):
                param.grad = waves(param, comm.rank + step)
            parts = waves(torch.view_as_real(numbers.detach()), comm.rank + step)
            numbers.grad = torch.view_as_complex(parts)
            for training in trainings:
                training.step()
        assert torch.equal(rows, channels)
        assert torch.equal(rows, torch.view_as_real(numbers))
        assert not torch.equal(rows, start)

    run_threads(3, work)


@pytest.mark.parametrize("mode", STEPPING)
def test_steps_are_the_same_in_every_mode(mode: str) -> None:
    """The first, which makes the variates, included; and rounds, state dicts and loads."""

    def train(comm: Any, within: Any) -> list[Any]:
        param = Parameter(torch.ones(3, 2))
        training = within(lambda: controlled(comm, [param]))
        found = []
        for step in range(9):
            param.grad = waves(param, comm.rank + step)
            within(training.step)
            saved = within(training.state_dict)
            within(lambda saved=saved: training.load_state_dict(saved))
            within(training.zero_grad)
            check_trainable([param], leaves=True)
            check_trainable([training.state[param]["control"]], leaves=False)
            found.append((param.tolist(), training.state[param]["control"].tolist()))
        within(training.flush)
        return found

    assert train(solo(), STEPPING[mode]) == train(solo(), outside)
    expected = run_threads(2, lambda comm: train(comm, outside))
    assert run_threads(2, lambda comm: train(comm, STEPPING[mode])) == expected
