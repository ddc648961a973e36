"""Which tensors a worker may average: whole ones that it holds itself.

The mean over workers of *different* shards is a number without a meaning, so shards are refused
by what their owners mark them with. Optimizers that shard are refused likewise.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from localsgd.torch.arrays.forms import holds
from localsgd.torch.comm import owner_of


def check_tensor(name: str, tensor: object) -> None:
    """Raises unless this is a whole, dense tensor whose memory this process holds.

    Raises:
        TypeError: for a shard (FSDP, DTensor), or a dtype that no arena holds.
        ValueError: for a tensor without memory, or of a mode of torch (``check_memory``).
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"parameter {name!r} must be a tensor, got a {type(tensor).__name__}")
    check_memory("parameter", name, tensor)
    if not holds(tensor.dtype):
        raise TypeError(
            f"parameter {name!r} must be of floating point or complex numbers, got {tensor.dtype}"
        )


def check_memory(kind: str, name: str, tensor: Tensor) -> None:
    """Raises unless this process holds the whole of a dense tensor.

    Args:
        kind: "parameter" or "buffer", for messages.

    Raises:
        TypeError: for a shard (FSDP, DTensor).
        ValueError: for a tensor without memory: lazy, meta, sparse, quantised; for one of a mode
            of torch: inference, fake, wrapped by ``torch.func``.
    """
    owner = shard_owner(tensor)
    if owner is not None:
        raise TypeError(_shard_of(kind, name, owner))
    owner = owner_of(tensor)
    # Buffers of inference mode can be read, and written when detached.
    if owner is not None and not (kind == "buffer" and tensor.is_inference()):
        raise ValueError(
            f"{kind} {name!r} must be a tensor that training can change, got one of {owner}: make "
            "it outside"
        )
    if is_lazy(tensor):
        raise ValueError(f"{kind} {name!r} must be initialised, got a lazy one: run a batch")
    if tensor.device.type == "meta" or tensor.layout is not torch.strided or tensor.is_quantized:
        raise ValueError(
            f"{kind} {name!r} must be dense and in memory, got one on {tensor.device} with "
            f"layout {tensor.layout} and dtype {tensor.dtype}"
        )


def shard_owner(tensor: Tensor) -> str | None:
    """What holds the other parts of this tensor; None if it is whole."""
    if getattr(tensor, "_is_flat_param", False) or getattr(tensor, "_fsdp_flattened", False):
        return "FullyShardedDataParallel"
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        return f"a DTensor {tuple(tensor.placements)}"
    return None


def check_optimizer(optim: object) -> None:
    """Raises for what is no optimizer, or one whose parameters or state are not this rank's own.

    Raises:
        TypeError: for something without ``param_groups``; a ZeroRedundancyOptimizer; DeepSpeed's;
            one with state of fewer than 32 bits (bitsandbytes, torchao); shards (FSDP, DTensor).
    """
    groups = getattr(optim, "param_groups", None)
    if groups is None:
        raise TypeError(f"optim must be an optimizer, with param_groups, got {optim!r}")
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(optim).__mro__]
    if any(kind.endswith(".ZeroRedundancyOptimizer") for kind in kinds):
        raise TypeError(
            "optim must leave every rank its own parameters, got a ZeroRedundancyOptimizer, "
            "which broadcasts them after every step and may hold them in buckets"
        )
    if any(kind.startswith("deepspeed.runtime.") for kind in kinds):
        raise TypeError(
            f"optim must step the module's own parameters, got {kinds[0]}, which steps copies that "
            "DeepSpeed shards: use a torch.optim optimizer without DeepSpeed"
        )
    if _bits(optim, kinds) < 32:
        raise TypeError(
            f"optim must have state of floating point, got {kinds[0]}, whose state is of codes, "
            "which have no mean: use the one of 32 bits"
        )
    for index, group in enumerate(groups):
        for place, tensor in enumerate(group["params"]):
            owner = shard_owner(tensor)
            if owner is not None:
                raise TypeError(_shard_of("parameter", f"{index}.{place}", owner))


def _bits(optim: object, kinds: list[str]) -> int:
    """Of how many bits each number of an optimizer's state is, as its library says."""
    if any(kind.startswith("bitsandbytes.") for kind in kinds):
        return int(getattr(getattr(optim, "args", None), "optim_bits", 32))
    if any(
        kind.startswith("torchao.") and kind.endswith(("8bit", "4bit", "Fp8")) for kind in kinds
    ):
        return 8
    return 32


def _shard_of(kind: str, name: str, owner: str) -> str:
    return (
        f"{kind} {name!r} must be whole on every rank, got a shard of {owner}: the mean "
        "of different shards has no meaning; use replicated parameters (as under DDP)"
    )
