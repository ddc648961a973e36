"""Adam with decoupled weight decay.

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101),
Algorithm 2, with the constants and the order of arithmetic of torch.optim.AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from localsgd.checks import checked_flag, checked_number
from localsgd.optim.base import Block, Optimizer
from localsgd.optim.groups import Group, ParamsLike


class AdamW(Optimizer):
    """Adam with decoupled weight decay; t is the number of the step.

        params = (1 - lr · weight_decay) · params
        m      = beta1 · m + (1 - beta1) · grad
        v      = beta2 · v + (1 - beta2) · grad²
        params = params - lr / (1 - beta1ᵗ) · m / (√v / √(1 - beta2ᵗ) + eps)

    ``m`` and ``v`` are ``exp_avg`` and ``exp_avg_sq`` in ``state``. ``maximize`` negates the
    gradient first.
    """

    state_keys = ("exp_avg", "exp_avg_sq")
    counts_steps = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
        )

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        betas = group["betas"]
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be two numbers, got {betas!r}")
        return {
            "lr": checked_number("lr", group["lr"]),
            "betas": tuple(
                checked_number(f"betas[{index}]", beta, below=1.0)
                for index, beta in enumerate(betas)
            ),
            "eps": checked_number("eps", group["eps"]),
            "weight_decay": checked_number("weight_decay", group["weight_decay"]),
            "maximize": checked_flag("maximize", group["maximize"]),
        }

    def kept(self, group: Group) -> tuple[str, ...]:
        return self.state_keys

    def update(self, group: Group, block: Block) -> None:
        params, grad, scratch = block.params, block.grad, block.scratch
        mean, square = block.state["exp_avg"], block.state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        params *= 1 - group["lr"] * group["weight_decay"]
        np.subtract(grad, mean, out=scratch)
        scratch *= 1 - beta1
        mean += scratch
        square *= beta2
        grad *= grad
        grad *= 1 - beta2
        square += grad
        np.sqrt(square, out=scratch)
        scratch /= sqrt(1 - beta2**block.step)
        scratch += group["eps"]
        np.divide(mean, scratch, out=scratch)
        scratch *= group["lr"] / (1 - beta1**block.step)
        params -= scratch
