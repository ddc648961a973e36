"""Lion: steps of one length, in the direction of the sign of an interpolated momentum.

Source: Chen et al., Symbolic Discovery of Optimization Algorithms (arXiv 2302.06675), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from localsgd.checks import checked_flag, checked_number
from localsgd.optim.adam import checked_betas
from localsgd.optim.block import Block
from localsgd.optim.optimizer import Optimizer
from localsgd.optim.param_groups import Group, ParamsLike


class Lion(Optimizer):
    """Lion, with decoupled weight decay.

        params = (1 - lr · weight_decay) · params
        params = params - lr · sign(beta1 · m + (1 - beta1) · grad)
        m      = beta2 · m + (1 - beta2) · grad

    ``m`` is ``exp_avg`` in ``state``. ``maximize`` negates the gradient first.
    """

    state_keys = ("exp_avg",)
    means_state = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        )

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "lr": checked_number("lr", group["lr"]),
            "betas": checked_betas(group["betas"]),
            "weight_decay": checked_number("weight_decay", group["weight_decay"]),
            "maximize": checked_flag("maximize", group["maximize"]),
        }

    def kept(self, group: Group) -> tuple[str, ...]:
        return self.state_keys

    def update(self, group: Group, block: Block) -> None:
        params, grad, scratch, mean = (
            block.params,
            block.grad,
            block.scratch,
            block.state["exp_avg"],
        )
        beta1, beta2 = group["betas"]
        params *= 1 - group["lr"] * group["weight_decay"]
        # In differences from the momentum: beta · m + (1 - beta) · g = m + (1 - beta) · (g - m).
        grad -= mean
        np.multiply(grad, 1 - beta1, out=scratch)
        scratch += mean
        np.sign(scratch, out=scratch)
        scratch *= group["lr"]
        params -= scratch
        grad *= 1 - beta2
        mean += grad
