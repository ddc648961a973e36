"""An outer optimizer: what makes the next anchor of the last one and the workers' mean.

    delta  = anchor - mean          (old minus new, which is descended)
    anchor = step(anchor, delta)

It sees one cache-sized block of this rank's shard at a time, between the reduction and the
write-back of a round, and has no memory of its own: anchor and state are the averager's. Rules are
written from the mean, so that those which say "take the mean" give its very bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from localsgd.comm.contract import Array


@dataclass
class Block:
    """Some numbers of this rank's shard.

    All arrays have shape ``(n,)`` and the dtype of the arithmetic: float32, or the parameters' own
    float64.

    Attributes:
        mean: the workers' mean; to be made the new anchor, in place.
        anchor: the last anchor; not to be changed.
        delta: ``anchor - mean``; may be overwritten.
        scratch: room for intermediate values.
        state: the arrays that the optimizer keeps, by key, zeros at first; changed in place.
        round: the number of this round, from 1.
    """

    mean: Array
    anchor: Array
    delta: Array
    scratch: Array
    state: dict[str, Array]
    round: int


class OuterOptimizer(ABC):
    """Makes anchors; the base of outer optimizers of one's own.

    Its ``repr`` names what it does and is compared between ranks.
    """

    state_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """The keys of the arrays that these hyperparameters need."""
        return self.state_keys

    def snapshot(self) -> OuterOptimizer:
        """This optimizer as it is now, for a round that goes on while it may change."""
        return copy(self)

    def begin_round(self) -> str:
        """What this round depends on besides the numbers, in words that ranks must have alike."""
        return ""

    def scalar_step(self) -> tuple[Callable[..., tuple[Any, ...]], Sequence[float]] | None:
        """``update`` for a single number, to be compiled into the loop of a round; None for none.

        A function ``step(mean, anchor, *state, *numbers)`` that gives the tuple of new anchor and
        new state, by the arithmetic of ``update`` and so with its bits; and the numbers, which get
        the dtype of the arithmetic. Module functions, since each is compiled once.
        """
        return None

    @abstractmethod
    def update(self, block: Block) -> None:
        """Makes ``block.mean`` the new anchor."""


def add(target: Array, factor: float, values: Array, scratch: Array) -> None:
    """``target += factor · values``; where the factor is 0 nothing is read, and no bit changes."""
    if factor:
        target += values if factor == 1 else np.multiply(values, factor, out=scratch)
