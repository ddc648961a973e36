"""Adam, with weight decay as a gradient of its own (L2).

Source: Kingma and Ba, Adam (arXiv 1412.6980), Algorithm 1; Reddi et al., On the Convergence of
Adam and Beyond (arXiv 1904.09237) for ``amsgrad``; the order of arithmetic is torch.optim.Adam's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from localsgd.checks import checked_flag, checked_number
from localsgd.optim.block import Block
from localsgd.optim.optimizer import Optimizer
from localsgd.optim.param_groups import Group, ParamsLike
from localsgd.optim.step_loops import adam_loop


class Adam(Optimizer):
    """Adam; t is the number of the step.

        grad   = grad + weight_decay · params
        m      = beta1 · m + (1 - beta1) · grad
        v      = beta2 · v + (1 - beta2) · grad²
        params = params - lr / (1 - beta1ᵗ) · m / (√v / √(1 - beta2ᵗ) + eps)

    With ``amsgrad`` the last line takes the largest v so far. In ``state``, ``m``, ``v`` and the
    largest v are ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq``. ``maximize`` negates the
    gradient first. A class that is ``decoupled`` multiplies ``params`` by 1 - lr · weight_decay in
    place of the first line.
    """

    decoupled: ClassVar[bool] = False
    state_keys = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    counts_steps = True
    means_state = True

    def __init__(
        self,
        params: ParamsLike,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
            },
        )

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "lr": checked_number("lr", group["lr"]),
            "betas": checked_betas(group["betas"]),
            "eps": checked_number("eps", group["eps"]),
            "weight_decay": checked_number("weight_decay", group["weight_decay"]),
            "amsgrad": checked_flag("amsgrad", group["amsgrad"]),
            "maximize": checked_flag("maximize", group["maximize"]),
        }

    def kept(self, group: Group) -> tuple[str, ...]:
        return self.state_keys if group["amsgrad"] else self.state_keys[:2]

    def update(self, group: Group, block: Block) -> None:
        grad, scratch = block.grad, block.scratch
        mean, square = block.state["exp_avg"], block.state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        if self.decoupled:
            block.params *= 1 - group["lr"] * group["weight_decay"]
        elif group["weight_decay"]:
            grad += np.multiply(block.params, group["weight_decay"], out=scratch)
        np.subtract(grad, mean, out=scratch)
        scratch *= 1 - beta1
        mean += scratch
        square *= beta2
        grad *= grad
        grad *= 1 - beta2
        square += grad
        if group["amsgrad"]:
            largest = block.state["max_exp_avg_sq"]
            square = np.maximum(largest, square, out=largest)
        np.sqrt(square, out=scratch)
        scratch /= sqrt(1 - beta2**block.step)
        scratch += group["eps"]
        np.divide(mean, scratch, out=scratch)
        scratch *= group["lr"] / (1 - beta1**block.step)
        block.params -= scratch

    def update_long(self, group: Group, block: Block) -> bool:
        adds_decay = bool(group["weight_decay"]) and not self.decoupled
        loop = None if group["amsgrad"] else adam_loop(block.params.dtype, adds_decay)
        if loop is None:
            return False
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        numbers = (
            decay if adds_decay else 1 - group["lr"] * decay,
            1 - beta1,
            beta2,
            1 - beta2,
            sqrt(1 - beta2**block.step),
            group["eps"],
            group["lr"] / (1 - beta1**block.step),
        )
        moments = block.state["exp_avg"], block.state["exp_avg_sq"]
        loop(block.params, block.grad, *moments, *map(block.params.dtype.type, numbers))
        return True


def checked_betas(betas: object) -> tuple[float, ...]:
    """The two rates of decay that a user gave, each in [0, 1)."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {betas!r}")
    return tuple(
        checked_number(f"betas[{index}]", beta, below=1.0) for index, beta in enumerate(betas)
    )
