"""Shards are refused on every rank, as torch does not (B6)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import localsgd.torch as ours
from localsgd import solo
from torch_ranks import run_ranks


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp_is_refused(use_orig_params: bool) -> None:
    def body(rank: int) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = FullyShardedDataParallel(
                nn.Linear(4, 4), use_orig_params=use_orig_params, device_id=torch.device("cpu")
            )
        with pytest.raises(TypeError, match="shard of FullyShardedDataParallel"):
            ours.average_parameters(model.parameters(), None)

    run_ranks(2, body)


def test_dtensors_are_refused() -> None:
    def body(rank: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (2,))
        param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        with pytest.raises(TypeError, match="shard of a DTensor"):
            ours.PeriodicModelAverager(2).average_parameters([param])

    run_ranks(2, body)


def test_an_optimizer_that_shards_is_refused() -> None:
    def body(rank: int) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optim = ZeroRedundancyOptimizer(
            nn.Linear(4, 4).parameters(), torch.optim.SGD, parameters_as_bucket_view=True, lr=0.1
        )
        with pytest.raises(TypeError, match="ZeroRedundancyOptimizer"):
            ours.PostLocalSGDOptimizer(optim, ours.PeriodicModelAverager(2))

    run_ranks(2, body)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: nn.Parameter(torch.ones(2, device="meta")), ValueError),
        (lambda: nn.LazyLinear(3).weight, ValueError),
        (lambda: nn.Parameter(torch.ones(2).to_sparse()), ValueError),
    ],
)
def test_tensors_without_memory_are_refused(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ours.PeriodicModelAverager(2, 0, solo()).average_parameters([make()])
