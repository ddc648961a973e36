"""Adagrad: every parameter's learning rate falls with the gradients that it has seen.

Source: Duchi, Hazan and Singer, Adaptive Subgradient Methods (JMLR 12, 2011), with the constants
and the order of arithmetic of torch.optim.Adagrad.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from localsgd.checks import checked_flag, checked_number
from localsgd.optim.block import Block
from localsgd.optim.optimizer import Optimizer
from localsgd.optim.param_groups import Group, ParamsLike


class Adagrad(Optimizer):
    """Adagrad; t is the number of the step.

        grad   = grad + weight_decay · params
        sum    = sum + grad²                      (at first: initial_accumulator_value)
        params = params - lr / (1 + (t - 1) · lr_decay) · grad / (√sum + eps)

    ``maximize`` negates the gradient first.
    """

    state_keys = ("sum",)
    counts_steps = True
    means_state = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "maximize": maximize,
            },
        )

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        numbers = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        return {
            **{name: checked_number(name, group[name]) for name in numbers},
            "maximize": checked_flag("maximize", group["maximize"]),
        }

    def kept(self, group: Group) -> tuple[str, ...]:
        return self.state_keys

    def update(self, group: Group, block: Block) -> None:
        params, grad, scratch, total = block.params, block.grad, block.scratch, block.state["sum"]
        if "sum" in block.fresh:
            total[...] = group["initial_accumulator_value"]
        if group["weight_decay"]:
            grad += np.multiply(params, group["weight_decay"], out=scratch)
        total += np.multiply(grad, grad, out=scratch)
        np.sqrt(total, out=scratch)
        scratch += group["eps"]
        np.divide(grad, scratch, out=scratch)
        scratch *= group["lr"] / (1 + (block.step - 1) * group["lr_decay"])
        params -= scratch
