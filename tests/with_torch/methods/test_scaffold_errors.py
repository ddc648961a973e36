"""What SCAFFOLD on torch refuses: an error on every rank, and nothing has changed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import Communicator, MismatchError, solo
from workers import assert_named_by_all, outcomes


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    params = [Parameter(torch.ones(3, 2)), Parameter(torch.ones(5))]
    training = ours.SCAFFOLD(torch.optim.SGD(params, lr=0.1), 4, process_group=solo())
    for _ in range(5):
        training.step()
    before, wrong = (copy.deepcopy(training.state_dict()) for _ in range(2))
    wrong["state"][0]["control"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"variate must have shape \(3, 2\), got \(4,\)"):
        training.load_state_dict(wrong)
    plain = torch.optim.SGD(params, lr=0.5).state_dict()
    with pytest.raises(ValueError, match="must have 'sum_of_rates' in its first group"):
        training.load_state_dict(plain)
    with pytest.raises(ValueError, match="must have 'sum_of_rates' in its first group, got \\[\\]"):
        training.load_state_dict({**before, "param_groups": []})
    for bad, error in ((float("nan"), ValueError), ("much", TypeError)):
        groups = [{**before["param_groups"][0], "sum_of_rates": bad}]
        with pytest.raises(error, match="a saved sum_of_rates must be"):
            training.load_state_dict({**before, "param_groups": groups})
    after = training.state_dict()
    assert after["param_groups"] == before["param_groups"] and after["step"] == before["step"]
    for key, entry in before["state"].items():
        assert torch.equal(after["state"][key]["control"], entry["control"])


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (torch.optim.AdamW, {}, TypeError, "must have a torch.optim.SGD, got a AdamW"),
        (partial(torch.optim.SGD, momentum=0.5), {}, ValueError, r"got \[{'lr': 0.1, 'momentum'"),
        (partial(torch.optim.SGD, maximize=True), {}, ValueError, "'maximize': True}"),
        (
            partial(torch.optim.SGD, differentiable=True),
            {},
            ValueError,
            "'differentiable': True}",
        ),
        (
            lambda params, lr: torch.optim.SGD(
                [{"params": [param], "lr": lr * (i + 1)} for i, param in enumerate(params)], lr=lr
            ),
            {},
            ValueError,
            r"SGD at one learning rate, .* got \[{'lr': 0.1}, {'lr': 0.2}\]",
        ),
        (lambda params, lr: lr, {}, TypeError, "must have a torch.optim.SGD, got a float"),
        (torch.optim.SGD, {"state": "reset"}, ValueError, "must have state 'local', got 'reset'"),
        (torch.optim.SGD, {"state": "mean"}, ValueError, "must have state 'local', got 'mean'"),
    ],
)
def test_what_cannot_be_controlled_on_one_rank_is_an_error_on_all(
    make: Callable[..., Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        params = [Parameter(torch.ones(3)) for _ in range(2)]
        if comm.rank == 1:
            ours.SCAFFOLD(make(params, lr=0.1), 4, process_group=comm, **options)
        else:
            ours.SCAFFOLD(torch.optim.SGD(params, lr=0.1), 4, process_group=comm)

    assert_named_by_all(outcomes(3, work), error, message, "optimizers")


def test_rounds_must_be_exact() -> None:
    def work(comm: Communicator) -> None:
        inner = torch.optim.SGD([Parameter(torch.ones(3))], lr=0.1)
        codec = ours.codecs.Int8() if comm.rank == 1 else None
        ours.SCAFFOLD(inner, 4, process_group=comm, compress=codec)

    words = r"SCAFFOLD must have exact rounds, got compress=int8\(256\)"
    assert_named_by_all(outcomes(2, work), ValueError, words, "codecs")


def test_what_changes_later_is_an_error_before_a_step() -> None:
    """Momentum set, or a group added; on all ranks of a round other rates and recorded samples."""
    param = Parameter(torch.ones(2))
    training = ours.SCAFFOLD(torch.optim.SGD([param], lr=0.1), 4, process_group=solo())
    param.grad = torch.ones(2)
    training.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="without momentum"):
        training.step()
    with pytest.raises(ValueError, match="must be those that it began with, got more"):
        training.add_param_group({"params": [Parameter(torch.ones(1))]})
    assert param.tolist() == [1.0, 1.0] and training.averager.step == 0

    def rounds(comm: Communicator, samples: int | None, lr: float) -> None:
        param = Parameter(torch.ones(2))
        training = ours.SCAFFOLD(torch.optim.SGD([param], lr=lr), 1, process_group=comm)
        param.grad = torch.ones(2)
        if samples is not None:
            training.record_samples(samples)
        training.step()

    for found in outcomes(2, lambda comm: rounds(comm, None, 0.1 * (comm.rank + 1))):
        assert isinstance(found, MismatchError)
        for rank, lr in enumerate((0.1, 0.2)):
            assert re.search(f"rank {rank}: allreduce .* sum of rates of {lr}", str(found))
    for found in outcomes(2, lambda comm: rounds(comm, 3, 0.1)):
        assert isinstance(found, ValueError)
        assert "must weigh equally under SCAFFOLD, got weight 3.0" in str(found)
    for found in outcomes(2, lambda comm: rounds(comm, 3 if comm.rank else None, 0.1)):
        assert isinstance(found, MismatchError)


def test_workers_must_take_equally_many_steps() -> None:
    """Uneven ends weigh workers, which is an error on every rank in the first round."""

    def work(comm: Communicator) -> None:
        param = Parameter(torch.ones(2))
        training = ours.SCAFFOLD(torch.optim.SGD([param], lr=0.1), 2, process_group=comm)
        with training.uneven():
            for _ in range(2 * comm.rank):
                param.grad = torch.ones(2)
                training.step()

    for found in outcomes(2, work):
        assert isinstance(found, ValueError)
        assert "let all take equally many steps" in str(found)
