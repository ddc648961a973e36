"""Outer gradient descent: plain, with heavy-ball momentum, or in Nesterov's form (DiLoCo's).

Sources: Douillard et al., DiLoCo (arXiv 2311.08105); the form of momentum is torch.optim.SGD's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from localsgd.checks import checked_flag, checked_number
from localsgd.outer import scalar_steps
from localsgd.outer.outer_optimizer import Block, OuterOptimizer, add


class SGD(OuterOptimizer):
    """Gradient descent on the distance that the workers' mean has moved.

        buffer = momentum · buffer + delta
        anchor = anchor - lr · buffer                       (Nesterov: delta + momentum · buffer)

    written from the mean, with ``old`` the buffer before and ``new`` after:

        anchor = mean + (1 - lr) delta - lr · momentum · old                  (Nesterov: new)

    so that a rate of 1 without momentum is the mean, to the bit.
    """

    state_keys = ("momentum_buffer",)

    def __init__(self, lr: float = 1.0, *, momentum: float = 0.0, nesterov: bool = False) -> None:
        """
        Args:
            lr: how much of the distance to go, at least 0; may be set later, alike on all ranks.
            momentum: in [0, 1).
            nesterov: with momentum above 0.

        Raises:
            TypeError, ValueError: for a number out of its range.
        """
        self.lr = checked_number("lr", lr)
        self.momentum = checked_number("momentum", momentum, below=1.0)
        self.nesterov = checked_flag("nesterov", nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov must have momentum above 0, got momentum 0.0")

    @property
    def kept(self) -> tuple[str, ...]:
        return self.state_keys if self.momentum else ()

    def begin_round(self) -> str:
        return f"outer lr {checked_number('lr', self.lr)}"

    def scalar_step(self) -> tuple[Callable[..., tuple[Any, ...]], Sequence[float]]:
        rest, pull = 1 - self.lr, self.lr * self.momentum
        if not self.momentum:
            return scalar_steps.sgd, (rest,)
        step = scalar_steps.nesterov if self.nesterov else scalar_steps.heavy_ball
        return step, (rest, self.momentum, pull)

    def update(self, block: Block) -> None:
        lr, momentum = self.lr, self.momentum
        if not momentum:
            add(block.mean, 1 - lr, block.delta, block.scratch)
            return
        buffer = block.state["momentum_buffer"]
        add(block.mean, 1 - lr, block.delta, block.scratch)
        if not self.nesterov:
            block.mean -= np.multiply(buffer, lr * momentum, out=block.scratch)
        buffer *= momentum
        buffer += block.delta
        if self.nesterov:
            block.mean -= np.multiply(buffer, lr * momentum, out=block.scratch)

    def __repr__(self) -> str:
        form = ", nesterov=True" if self.nesterov else ""
        return f"outer.SGD(lr={self.lr}, momentum={self.momentum}{form})"
