"""Adaptive outer optimizers: Adagrad, Adam and Yogi of the FedOpt family.

They have no bias correction, unlike their namesakes for local steps.

Source: Reddi et al., Adaptive federated optimization (arXiv 2003.00295), Algorithm 2; there the
pseudo-gradient is ``mean - anchor`` and ascended, which is the same.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from localsgd.checks import checked_number
from localsgd.comm.contract import Array
from localsgd.outer.outer_optimizer import Block, OuterOptimizer


class _FedOpt(OuterOptimizer):
    """What the three have in common:

    m      = beta1 · m + (1 - beta1) delta
    v      = …
    anchor = anchor - lr · m / (√v + tau)
    """

    state_keys = ("mean", "square")

    def __init__(self, lr: float, *, beta1: float, tau: float) -> None:
        self.lr = checked_number("lr", lr)
        self.beta1 = checked_number("beta1", beta1, below=1.0)
        self.tau = checked_number("tau", tau)
        if not self.tau:
            raise ValueError("tau must be above 0, got 0.0")

    def begin_round(self) -> str:
        return f"outer lr {checked_number('lr', self.lr)}"

    def update(self, block: Block) -> None:
        first, second = block.state["mean"], block.state["square"]
        delta, scratch = block.delta, block.scratch
        first *= self.beta1
        first += np.multiply(delta, 1 - self.beta1, out=scratch)
        np.square(delta, out=delta)
        self._accumulate(second, delta, scratch)
        np.sqrt(second, out=scratch)
        scratch += self.tau
        np.divide(first, scratch, out=scratch)
        np.multiply(scratch, self.lr, out=scratch)
        np.subtract(block.anchor, scratch, out=block.mean)

    @abstractmethod
    def _accumulate(self, second: Array, square: Array, scratch: Array) -> None:
        """Adds ``delta²`` to the second moments; ``square`` and ``scratch`` may be overwritten."""

    def __repr__(self) -> str:
        words = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"outer.{type(self).__name__}({words})"


class Adagrad(_FedOpt):
    """``v = v + delta²``: every coordinate's own rate, which only falls."""

    def __init__(self, lr: float, *, beta1: float = 0.0, tau: float = 1e-3) -> None:
        """
        Args:
            lr: the outer learning rate, at least 0.
            beta1: in [0, 1).
            tau: how adaptive it is, above 0: the smaller, the more.
        """
        super().__init__(lr, beta1=beta1, tau=tau)

    def _accumulate(self, second: Array, square: Array, scratch: Array) -> None:
        second += square


class _WithDecay(_FedOpt):
    def __init__(
        self, lr: float, *, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        """
        Args:
            lr: the outer learning rate, at least 0.
            beta1, beta2: in [0, 1).
            tau: how adaptive it is, above 0: the smaller, the more.
        """
        super().__init__(lr, beta1=beta1, tau=tau)
        self.beta2 = checked_number("beta2", beta2, below=1.0)


class Adam(_WithDecay):
    """``v = beta2 · v + (1 - beta2) delta²``."""

    def _accumulate(self, second: Array, square: Array, scratch: Array) -> None:
        second *= self.beta2
        second += np.multiply(square, 1 - self.beta2, out=scratch)


class Yogi(_WithDecay):
    """``v = v - (1 - beta2) delta² sign(v - delta²)``: grows at once, falls slowly."""

    def _accumulate(self, second: Array, square: Array, scratch: Array) -> None:
        np.subtract(second, square, out=scratch)
        np.sign(scratch, out=scratch)
        np.multiply(square, 1 - self.beta2, out=square)
        second -= np.multiply(square, scratch, out=scratch)
