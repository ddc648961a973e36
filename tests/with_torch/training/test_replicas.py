"""DDP that averages gradients in the local phase is said once, with the remedy."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import localsgd.torch as ours
from torch_ranks import run_ranks


def said(rank: int, how: str) -> list[str]:
    """What three steps warn of, as local SGD of period 2 of a model in DDP."""
    model = DistributedDataParallel(nn.Linear(3, 1))
    if how == "hooked":
        model.register_comm_hook(ours.PostLocalSGDState(None, None, 0), ours.post_localSGD_hook)
    if how == "beside":
        bystander, model = model, nn.Linear(3, 1)
    optimizer = ours.LocalSGD(torch.optim.SGD(model.parameters(), lr=0.1), period=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with model.no_sync() if how == "no_sync" else warnings.catch_warnings():
                model(torch.full((1, 3), 1.0 + rank)).sum().backward()
                optimizer.step()
            optimizer.zero_grad()
    if how == "beside":
        del bystander
    return [str(warning.message) for warning in caught if __file__ == warning.filename]


@pytest.mark.parametrize("size", [2, 3])
def test_ddp_without_a_hook_is_said_once_by_rank_0(size: int) -> None:
    first, *others = run_ranks(size, lambda rank: said(rank, "plain"))
    assert len(first) == 1
    assert f"the gradients of 2 parameters among all {size} workers" in first[0]
    assert "without DDP, or register_comm_hook(PostLocalSGDState" in first[0]
    assert others == [[]] * (size - 1)


@pytest.mark.parametrize("how", ["hooked", "no_sync", "beside"])
def test_ddp_that_leaves_these_gradients_alone_is_not_said(how: str) -> None:
    assert run_ranks(2, lambda rank: said(rank, how)) == [[], []]


def test_ddp_of_fewer_workers_than_average_is_not_said() -> None:
    """As within hosts, whose workers then average with those of others."""

    def body(rank: int) -> Any:
        import torch.distributed as dist

        groups = [dist.new_group([2 * host, 2 * host + 1]) for host in range(2)]
        model = DistributedDataParallel(nn.Linear(3, 1), process_group=groups[rank // 2])
        optimizer = ours.LocalSGD(torch.optim.SGD(model.parameters(), lr=0.1), period=2)
        for _ in range(2):
            model(torch.full((1, 3), 1.0 + rank)).sum().backward()
            optimizer.step()
        return model.module.weight.tolist()

    assert len({str(weights) for weights in run_ranks(4, body)}) == 1
