"""SlowMo: a slow momentum over rounds, in units of the inner learning rate.

Source: Wang et al., SlowMo (arXiv 1910.00643), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from localsgd.checks import checked_number
from localsgd.outer import scalar_steps
from localsgd.outer.outer_optimizer import Block, OuterOptimizer, add


@runtime_checkable
class HasGroups(Protocol):
    """An optimizer, as far as its learning rate is asked for."""

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]: ...


RateOf: TypeAlias = "HasGroups | Callable[[], float]"


class SlowMo(OuterOptimizer):
    """A momentum that does not change its meaning when the inner learning rate does.

        u      = beta · u + delta / gamma              gamma: the inner rate of the last step
        anchor = anchor - alpha · gamma · u

    written from the mean: ``mean + (1 - alpha) delta - alpha · gamma · beta · old u``. With a
    constant rate it is ``SGD(lr=alpha, momentum=beta)``; with a changing one it is not. In a round
    whose inner rate is 0 the mean is taken and ``u`` stays.
    """

    state_keys = ("slow_momentum",)

    def __init__(self, inner: RateOf, *, alpha: float = 1.0, beta: float = 0.5) -> None:
        """
        Args:
            inner: the optimizer that takes the local steps, all groups at one rate, or a function
                that gives that rate.
            alpha: the slow learning rate, at least 0.
            beta: the slow momentum, in [0, 1); 0.4 to 0.8 in the paper.

        Raises:
            TypeError, ValueError: for a number out of its range, or what gives no rate.
        """
        if not isinstance(inner, HasGroups) and not callable(inner):
            raise TypeError(f"inner must be an optimizer or a function, got {inner!r}")
        self._inner = inner
        self.alpha = checked_number("alpha", alpha)
        self.beta = checked_number("beta", beta, below=1.0)
        self._gamma = 0.0

    @property
    def kept(self) -> tuple[str, ...]:
        return self.state_keys if self.beta else ()

    def begin_round(self) -> str:
        self._gamma = self._rate()
        return f"slow momentum at rate {self._gamma}"

    def scalar_step(self) -> tuple[Callable[..., tuple[Any, ...]], Sequence[float]] | None:
        gamma, rest = self._gamma, 1 - self.alpha
        if not gamma:
            return None
        if not self.beta:
            return scalar_steps.sgd, (rest,)
        pull = self.alpha * gamma * self.beta
        return scalar_steps.slowmo, (rest, gamma, self.beta, pull)

    def update(self, block: Block) -> None:
        gamma = self._gamma
        if not gamma:
            return
        add(block.mean, 1 - self.alpha, block.delta, block.scratch)
        if self.beta:
            momentum = block.state["slow_momentum"]
            pull = self.alpha * gamma * self.beta
            block.mean -= np.multiply(momentum, pull, out=block.scratch)
            momentum *= self.beta
            momentum += np.divide(block.delta, gamma, out=block.scratch)

    def _rate(self) -> float:
        if not isinstance(self._inner, HasGroups):
            return checked_number("the inner learning rate", self._inner())
        rates = [float(group["lr"]) for group in self._inner.param_groups]
        if not rates or min(rates) != max(rates):
            raise ValueError(f"groups must have one learning rate under SlowMo, got {rates}")
        return checked_number("the inner learning rate", rates[0])

    def __repr__(self) -> str:
        inner = type(self._inner).__name__ if isinstance(self._inner, HasGroups) else "function"
        return f"outer.SlowMo({inner}, alpha={self.alpha}, beta={self.beta})"
