"""Streaming with outer steps in numpy, of workers that are lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIZES = {"a": 24, "b": 16}


def noise(rank: int, step: int, name: str) -> Any:
    return np.random.default_rng([rank, step, ord(name)]).normal(size=SIZES[name])


@dataclass
class Loss:
    """Who is left from the round on that follows a step; 0 is the flush at the end.

    Attributes:
        shards: for every fragment what of its outer state nobody has any more.
        come: the fragments on their way that arrive all the same.
    """

    left: Sequence[int]
    shards: dict[str, slice] = field(default_factory=dict)
    come: Sequence[str] = ()


@dataclass
class Written:
    """Every worker's parameters, a fragment for each.

    Attributes:
        due: for a step the fragments that leave after it.
    """

    due: Callable[[int], Sequence[str]]
    delay: int
    mixing: float = 0.0
    keep_progress: bool = False
    lr: float = 0.7
    momentum: float = 0.9

    def run(self, size: int, steps: int, losses: dict[int, Loss], together: int = 0) -> Any:
        """What the workers hold after a flush, which is the same on all."""
        self.left: Sequence[int] = range(size)
        start = {name: np.arange(count, dtype=float) for name, count in SIZES.items()}
        self.x = {rank: {n: values.copy() for n, values in start.items()} for rank in self.left}
        self.anchor = {name: values.copy() for name, values in start.items()}
        self.buffer = {name: np.zeros_like(values) for name, values in start.items()}
        self.away: dict[str, tuple[int, Any, Any]] = {}
        for step in range(1, steps + 1):
            for rank in self.left:
                for name in SIZES:
                    self.x[rank][name] = self.x[rank][name] - 0.1 * noise(rank, step, name)
            self._lose(losses.get(step))
            if step <= together:
                for name in SIZES:
                    self.anchor[name] = self._mean(name)
                    for rank in self.left:
                        self.x[rank][name] = self.anchor[name].copy()
            for name in [
                name for name, (left_at, *_) in self.away.items() if left_at + self.delay == step
            ]:
                self._arrive(name, self.mixing)
            for name in self.due(step - together):
                self._leave(name, step)
        self._lose(losses.get(0))
        for name in list(self.away):
            self._arrive(name, self.mixing)
        for name in SIZES:
            self._leave(name, steps)
            keeps, self.keep_progress = self.keep_progress, False
            self._arrive(name, 0.0)
            self.keep_progress = keeps
        return np.concatenate([self.x[self.left[0]][name] for name in SIZES])

    def _mean(self, name: str) -> Any:
        return sum(self.x[rank][name] for rank in self.left) / len(self.left)

    def _lose(self, loss: Loss | None) -> None:
        if loss is None:
            return
        self.left = loss.left
        self.away = {name: self.away[name] for name in loss.come}
        for name, part in loss.shards.items():
            self.anchor[name][part] = self._mean(name)[part]
            self.buffer[name][part] = 0

    def _leave(self, name: str, step: int) -> None:
        delta = self.anchor[name] - self._mean(name)
        buffer = self.momentum * self.buffer[name] + delta
        result = self.anchor[name] - self.lr * (delta + self.momentum * buffer)
        befores = {rank: self.x[rank][name].copy() for rank in self.left}
        self.away[name] = step, (result, buffer), befores

    def _arrive(self, name: str, mixing: float) -> None:
        _, (result, buffer), befores = self.away.pop(name)
        self.anchor[name], self.buffer[name] = result.copy(), buffer
        for rank in self.left:
            x = self.x[rank][name]
            if self.keep_progress:
                self.x[rank][name] = x + (result - befores[rank])
            else:
                self.x[rank][name] = mixing * x + (1 - mixing) * result
