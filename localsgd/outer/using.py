"""Any optimizer of ``localsgd.optim`` as an outer one: its gradient is the mean's way back."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from localsgd import optim
from localsgd.arrays import Arena
from localsgd.comm import solo
from localsgd.optim import Block as InnerBlock
from localsgd.outer.outer_optimizer import Block, OuterOptimizer


class _Using(OuterOptimizer):
    def __init__(self, rule: optim.Optimizer) -> None:
        self._rule, self._group = rule, rule.param_groups[0]

    def snapshot(self) -> OuterOptimizer:
        made = copy(self)
        made._group = dict(self._group)
        return made

    @property
    def kept(self) -> tuple[str, ...]:
        return tuple(self._rule.kept(self._group))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the optimizer; may be set between rounds, alike on all ranks."""
        return self._group

    def begin_round(self) -> str:
        self._rule.checked(self._group)
        return f"{self!r}"

    def update(self, block: Block) -> None:
        fresh = frozenset(self.kept) if block.round == 1 else frozenset[str]()
        if self._group.get("maximize"):
            np.negative(block.delta, out=block.delta)
        block.mean[...] = block.anchor
        step = block.round if self._rule.counts_steps else 0
        self._rule.update(
            self._group,
            InnerBlock(block.mean, block.delta, block.scratch, block.state, fresh, step),
        )

    def __repr__(self) -> str:
        words = {key: value for key, value in self._group.items() if key != "params"}
        listed = ", ".join(f"{key}={value}" for key, value in words.items())
        return f"outer.using({type(self._rule).__name__}, {listed})"


def using(kind: type[optim.Optimizer], **hyperparameters: Any) -> OuterOptimizer:
    """An outer optimizer with the rule of an inner one.

        anchor = the step of ``kind`` from anchor with gradient delta

    as in ``using(optim.AdamW, lr=0.1, eps=0.1)``.

    Args:
        kind: a class of ``localsgd.optim`` whose rule is one for each number.
        hyperparameters: its own; they are what it takes, and nothing else.

    Raises:
        TypeError, ValueError: for another class, one that works on whole matrices (Muon), or what
            the class raises for its hyperparameters.
    """
    if not (isinstance(kind, type) and issubclass(kind, optim.Optimizer)):
        raise TypeError(f"kind must be a class of localsgd.optim, got {kind!r}")
    if kind.by_parameter:
        raise ValueError(
            f"kind must have a rule for each number, got {kind.__name__}, which needs whole "
            "parameters and not a worker's shard"
        )
    one = Arena({"number": np.zeros(1)}, solo())
    return _Using(kind(one, **hyperparameters))
