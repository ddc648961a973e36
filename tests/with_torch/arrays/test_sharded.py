"""Shards are refused on every rank, as torch does not (B6)."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
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


def optimizer_of(library: str, name: str, **attributes: Any) -> torch.optim.Optimizer:
    """An optimizer that says it is of a library, as its classes do by their module and name."""
    kind = type(name, (torch.optim.SGD,), {"__module__": library, **attributes})
    return kind(nn.Linear(2, 2).parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (
            optimizer_of("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer"),
            "stage_1_and_2.DeepSpeedZeroOptimizer, which steps copies",
        ),
        (optimizer_of("torchao.optim.adam", "AdamW4bit"), "adam.AdamW4bit, whose state"),
        (
            optimizer_of("bitsandbytes.optim.adam", "Adam", args=SimpleNamespace(optim_bits=8)),
            "adam.Adam, whose state",
        ),
    ],
)
def test_optimizers_of_libraries_that_shard_or_quantise_are_refused_when_wrapped(
    optim: torch.optim.Optimizer, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        ours.PostLocalSGDOptimizer(optim, ours.PeriodicModelAverager(2))


@pytest.mark.parametrize(
    "optim",
    [
        optimizer_of("deepspeed.ops.adam.fused_adam", "FusedAdam"),
        optimizer_of("torchao.optim.adam", "_AdamW"),
        optimizer_of("bitsandbytes.optim.adam", "Adam", args=SimpleNamespace(optim_bits=32)),
    ],
)
def test_their_plain_optimizers_are_not(optim: torch.optim.Optimizer) -> None:
    assert ours.PostLocalSGDOptimizer(optim, ours.PeriodicModelAverager(2)).optim is optim


def test_shards_are_refused_when_wrapped_on_every_rank() -> None:
    def body(rank: int) -> str:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(TypeError, match=r"parameter '0.0' must be whole") as caught:
            ours.LocalSGD(torch.optim.SGD(model.parameters(), lr=0.1), period=2)
        return str(caught.value)

    assert ["got a shard of a DTensor" in message for message in run_ranks(2, body)] == [True, True]
