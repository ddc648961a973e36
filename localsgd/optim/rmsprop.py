"""RMSprop: gradients over the root of their running mean square, optionally centred.

Sources: Tieleman and Hinton, lecture 6.5 (2012); Graves (arXiv 1308.0850), equations 38-45, for
the centred form; constants and order of arithmetic of torch.optim.RMSprop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from localsgd.checks import checked_flag, checked_number
from localsgd.optim.block import Block
from localsgd.optim.optimizer import Optimizer
from localsgd.optim.param_groups import Group, ParamsLike


class RMSprop(Optimizer):
    """RMSprop.

        grad   = grad + weight_decay · params
        square = alpha · square + (1 - alpha) · grad²
        mean   = alpha · mean + (1 - alpha) · grad          (centered; otherwise 0)
        ratio  = grad / (√(square - mean²) + eps)
        buffer = momentum · buffer + ratio                  (without momentum: ratio)
        params = params - lr · buffer

    In ``state``: ``square_avg``, ``grad_avg`` and ``momentum_buffer``. ``maximize`` negates the
    gradient first.
    """

    state_keys = ("square_avg", "grad_avg", "momentum_buffer")
    counts_steps = True
    means_state = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
        )

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "lr": checked_number("lr", group["lr"]),
            "alpha": checked_number("alpha", group["alpha"], below=1.0),
            "eps": checked_number("eps", group["eps"]),
            "weight_decay": checked_number("weight_decay", group["weight_decay"]),
            "momentum": checked_number("momentum", group["momentum"]),
            "centered": checked_flag("centered", group["centered"]),
            "maximize": checked_flag("maximize", group["maximize"]),
        }

    def kept(self, group: Group) -> tuple[str, ...]:
        uses = {"grad_avg": group["centered"], "momentum_buffer": group["momentum"] > 0}
        return tuple(key for key in self.state_keys if uses.get(key, True))

    def update(self, group: Group, block: Block) -> None:
        params, grad, scratch = block.params, block.grad, block.scratch
        square, alpha = block.state["square_avg"], group["alpha"]
        if group["weight_decay"]:
            grad += np.multiply(params, group["weight_decay"], out=scratch)
        square *= alpha
        np.multiply(grad, grad, out=scratch)
        scratch *= 1 - alpha
        square += scratch
        if group["centered"]:
            mean = block.state["grad_avg"]
            np.subtract(grad, mean, out=scratch)
            scratch *= 1 - alpha
            mean += scratch
            np.multiply(mean, mean, out=scratch)
            np.subtract(square, scratch, out=scratch)
            np.sqrt(scratch, out=scratch)
        else:
            np.sqrt(square, out=scratch)
        scratch += group["eps"]
        grad /= scratch
        if group["momentum"]:
            buffer = block.state["momentum_buffer"]
            buffer *= group["momentum"]
            buffer += grad
            grad = buffer
        params -= np.multiply(grad, group["lr"], out=scratch)
