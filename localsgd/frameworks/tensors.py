"""Tensors of any device and dtype between workers, for what frameworks ask of their processes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from localsgd.comm import Communicator


def gathered(comm: Communicator, tensor: Tensor) -> list[Tensor]:
    """Every worker's tensor, in rank order, where this one's is. Collective.

    Args:
        tensor: of any shape, which may differ between workers in the first dimension.
    """
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    shape = (-1, *tensor.shape[1:]) if tensor.ndim else ()
    return [
        torch.from_numpy(part.copy()).view(tensor.dtype).view(shape).to(tensor.device)
        for part in comm.gather(data)
    ]


def reduced(comm: Communicator, tensor: Tensor, op: Literal["mean", "sum", "max", "min"]) -> Tensor:
    """A tensor's mean, sum, maximum or minimum over all workers, in new memory. Collective.

    The mean of integers is one of float32.
    """
    values = tensor.detach().to("cpu", copy=True)
    if op == "mean" and not values.is_floating_point():
        values = values.float()
    wide = (
        values.float() if values.dtype in (torch.float16, torch.bfloat16) else values.contiguous()
    )
    comm.allreduce(wide.view(-1).numpy(), op)
    return wide.to(tensor.device, values.dtype)
