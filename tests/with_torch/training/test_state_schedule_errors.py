"""Schedules for parts of the state of torch's optimizers that are an error on every rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import Communicator, MismatchError, ModelAverager, every
from workers import assert_named_by_all, outcomes

SLOW = {"exp_avg": every(6), "exp_avg_sq": every(12)}


@pytest.mark.parametrize(
    ("make", "state", "error", "message"),
    [
        (
            torch.optim.AdamW,
            {"momentum": every(2)},
            ValueError,
            r"state must have keys of \['exp_avg', 'exp_avg_sq'\], got 'momentum'",
        ),
        (
            torch.optim.AdamW,
            {"max_exp_avg_sq": every(2)},
            ValueError,
            r"state must have keys of \['exp_avg', 'exp_avg_sq'\], got 'max_exp_avg_sq'",
        ),
        (
            torch.optim.SGD,
            {"momentum_buffer": every(2)},
            ValueError,
            r"state must have keys of \[\], got 'momentum_buffer'",
        ),
        (torch.optim.AdamW, {3: every(2)}, ValueError, "got 3"),
        (
            torch.optim.AdamW,
            {"exp_avg": 3},
            TypeError,
            r"state\['exp_avg'\] must be as every\(48\) is, got 3",
        ),
        (
            torch.optim.Rprop,
            {"prev": every(2)},
            ValueError,
            "must have an optimizer whose state has a mean .* got Rprop",
        ),
    ],
)
def test_what_is_no_part_or_no_schedule_is_an_error_on_all(
    make: Any, state: Any, error: type[Exception], message: str
) -> None:
    def work(comm: Communicator) -> None:
        bad = comm.rank == 1
        inner = (make if bad else torch.optim.AdamW)([Parameter(torch.ones(2))], lr=0.1)
        averager = ModelAverager(every(2), comm)
        ours.PostLocalSGDOptimizer(inner, averager, state=state if bad else SLOW)

    assert_named_by_all(outcomes(3, work), error, message, "options")


@pytest.mark.parametrize("other", [{**SLOW, "exp_avg": every(4)}, {"exp_avg": every(6)}, "mean"])
def test_schedules_that_differ_are_an_error_on_all(other: Any) -> None:
    def work(comm: Communicator) -> None:
        inner = torch.optim.AdamW([Parameter(torch.ones(2))], lr=0.1)
        averager = ModelAverager(every(2), comm)
        ours.PostLocalSGDOptimizer(inner, averager, state=other if comm.rank else SLOW)

    for found in outcomes(2, work):
        assert isinstance(found, MismatchError)
        assert "options must be equal on every rank, got state['exp_avg" in str(found)
