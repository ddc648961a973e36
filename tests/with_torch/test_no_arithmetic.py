"""The adapter moves and places model-sized data; whatever computes with it is the core or torch.

But for ``arrays/on_device.py``, for parameters that are averaged on a device.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import localsgd.torch as ours
from torch_ranks import run_ranks

SOURCES = sorted((Path(__file__).parents[2] / "localsgd" / "torch").glob("**/*.py"))

WIDTH = 64
# What moves memory or looks at it in another shape.
MOVES = {
    "alias",
    "clone",
    "copy_",
    "split",
    "detach",
    "lift_fresh",
    "permute",
    "recv_",
    "recv_any_source_",
    "send",
    "view",
}
# How torch's scaler looks for infinities and unscales.
OF_SCALERS = {"_amp_foreach_non_finite_check_and_unscale_"}
# What is asked of numpy: types, memory, and the number of elements.
TYPES = {"dtype", "ndarray", "float16", "float32", "float64", "int32", "int64", "uint8", "uint16"}
NUMPY = {"array", "empty", "frombuffer", "prod", "zeros"} | TYPES


class Recorded(TorchDispatchMode):
    """Counts torch's operations on tensors of the size of a weight, or of one row of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if any(tensor.numel() >= WIDTH for tensor in tensors):
            self.found[func.overloadpacket.__name__] += 1
        return result


Optimizer = torch.optim.Optimizer
Setup = Callable[[nn.Module, Optimizer], tuple[nn.Module, Any]]


def operations(set_up: Setup, *, fused: bool = False, scaled: bool = False) -> Counter[str]:
    """What six steps of training do to large tensors, the set-up included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    inputs = torch.ones(4, WIDTH)
    with Recorded() as recorded:
        module, stepped = set_up(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
        for _ in range(6):
            stepped.zero_grad()
            scaler.scale(module(inputs).pow(2).mean()).backward()
            scaler.step(stepped)
            scaler.update()
        if isinstance(stepped, ours.PostLocalSGDOptimizer):
            stepped.flush()
    return recorded.found


def bare(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    return model, optimizer


def averaged(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    """Rounds after steps 1, 3 and 5, and at the end."""
    return model, ours.PostLocalSGDOptimizer(optimizer, ours.PeriodicModelAverager(2))


def everything(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    """Gradients averaged in three steps, then parameters, state and buffers."""
    adopted = ours.adopt(model)
    averager = ours.PeriodicModelAverager(2, 3)
    stage = ours.GradientStage(model, averager)
    wrapped = ours.PostLocalSGDOptimizer(
        optimizer, averager, gradients=stage, state="mean", buffers=adopted.buffers
    )
    return model, wrapped


def ddp(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    module = DistributedDataParallel(model)
    module.register_comm_hook(None, noop_hook)
    return module, optimizer


def hooked(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    module = DistributedDataParallel(model)
    module.register_comm_hook(ours.PostLocalSGDState(None, None, 3), ours.post_localSGD_hook)
    return module, ours.PostLocalSGDOptimizer(optimizer, ours.PeriodicModelAverager(2, 3))


WAYS: dict[str, tuple[Setup, Setup]] = {
    "averaged": (averaged, bare),
    "everything": (everything, bare),
    "hooked": (hooked, ddp),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_training_computes_nothing_on_large_tensors_that_torchs_own_does_not(
    way: str, scaled: bool, fused: bool
) -> None:
    """Counted by operation; what only moves memory is free."""

    def body(rank: int) -> Any:
        return [dict(operations(setup, fused=fused, scaled=scaled)) for setup in WAYS[way]]

    for mine, theirs in run_ranks(2, body):
        more = Counter(mine) - Counter(theirs)
        assert set(more) <= MOVES | OF_SCALERS, more
        assert mine["_fused_adamw_" if fused else "addcdiv_"] > 0


def used_of_numpy(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "np":
            yield node.attr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_is_computed_by_numpy(path: Path) -> None:
    assert set(used_of_numpy(path)) <= NUMPY
