"""Stochastic gradient descent, with momentum, dampening, Nesterov's form and weight decay.

Source: torch.optim.SGD, whose momentum buffer starts as the first gradient, undampened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from localsgd.checks import checked_flag, checked_number
from localsgd.optim.block import Block
from localsgd.optim.optimizer import Optimizer
from localsgd.optim.param_groups import Group, ParamsLike
from localsgd.optim.step_loops import sgd_loop


class SGD(Optimizer):
    """Stochastic gradient descent.

        grad   = grad + weight_decay · params
        buffer = momentum · buffer + (1 - dampening) · grad    (in the first step: grad)
        params = params - lr · buffer                          (Nesterov: grad + momentum · buffer)

    Without momentum there is no buffer and the last line takes the gradient. ``maximize``
    negates the gradient first.
    """

    state_keys = ("momentum_buffer",)
    means_state = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        checked = {
            "lr": checked_number("lr", group["lr"]),
            "momentum": checked_number("momentum", group["momentum"]),
            "dampening": checked_number("dampening", group["dampening"], at_least=-np.inf),
            "weight_decay": checked_number("weight_decay", group["weight_decay"]),
            "nesterov": checked_flag("nesterov", group["nesterov"]),
            "maximize": checked_flag("maximize", group["maximize"]),
        }
        if checked["nesterov"] and (not checked["momentum"] or checked["dampening"]):
            raise ValueError(
                "nesterov must have momentum above 0 and dampening 0, got momentum "
                f"{checked['momentum']} and dampening {checked['dampening']}"
            )
        return checked

    def kept(self, group: Group) -> tuple[str, ...]:
        return self.state_keys if group["momentum"] else ()

    def update(self, group: Group, block: Block) -> None:
        params, direction, scratch = block.params, block.grad, block.scratch
        if group["weight_decay"]:
            direction += np.multiply(params, group["weight_decay"], out=scratch)
        if group["momentum"]:
            buffer = block.state["momentum_buffer"]
            if "momentum_buffer" in block.fresh:
                buffer[...] = direction
            else:
                buffer *= group["momentum"]
                kept = 1 - group["dampening"]
                buffer += direction if kept == 1 else np.multiply(direction, kept, out=scratch)
            if group["nesterov"]:
                direction += np.multiply(buffer, group["momentum"], out=scratch)
            else:
                direction = buffer
        params -= np.multiply(direction, group["lr"], out=scratch)

    def update_long(self, group: Group, block: Block) -> bool:
        momentum, decay = group["momentum"], group["weight_decay"]
        loop = sgd_loop(block.params.dtype, bool(momentum), bool(group["nesterov"]), bool(decay))
        if loop is None:
            return False
        buffer = block.state["momentum_buffer"] if momentum else block.grad
        numbers = (group["lr"], momentum, 1 - group["dampening"], decay)
        arrays = block.params, block.grad, buffer
        loop(*arrays, bool(block.fresh), *map(block.params.dtype.type, numbers))
        return True
