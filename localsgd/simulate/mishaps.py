"""What goes wrong in a simulation, drawn from a seed: slow steps, and workers that are lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from localsgd.checks import checked_number

_STEPS, _LOSSES = 1, 2
Delay: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Stragglers:
    """Every step of every worker takes longer with some chance.

    Attributes:
        chance: of that, in [0, 1].
        delay_s: how much longer, in seconds.

    Raises:
        TypeError, ValueError: for a number out of range.
    """

    chance: float
    delay_s: float

    def __post_init__(self) -> None:
        if checked_number("chance", self.chance) > 1:
            raise ValueError(f"chance must be at most 1, got {self.chance}")
        checked_number("delay_s", self.delay_s)

    def of_worker(self, seed: int, rank: int) -> Delay:
        """How much longer a worker's steps take, which are asked for in their order."""
        draws = np.random.default_rng([seed, _STEPS, rank])
        return lambda step: self.delay_s if draws.random() < self.chance else 0.0


@dataclass(frozen=True)
class Faults:
    """Every worker is lost after some time, which has an exponential distribution.

    Attributes:
        mean_s: of that time, in seconds.

    Raises:
        TypeError, ValueError: unless it is above 0.
    """

    mean_s: float

    def __post_init__(self) -> None:
        if checked_number("mean_s", self.mean_s) == 0:
            raise ValueError("mean_s must be above 0 seconds, got 0")

    def of_worker(self, seed: int, rank: int) -> float:
        """When a worker is lost, in seconds."""
        return float(np.random.default_rng([seed, _LOSSES, rank]).exponential(self.mean_s))


SomeStragglers: TypeAlias = Stragglers | Mapping[tuple[int, int], float] | None
SomeFaults: TypeAlias = Faults | Mapping[int, float] | None


def delay_of(stragglers: SomeStragglers, seed: int, rank: int) -> Delay:
    """How much longer the steps of a worker take, from 1, in their order."""
    if stragglers is None:
        return lambda step: 0.0
    if isinstance(stragglers, Stragglers):
        return stragglers.of_worker(seed, rank)
    return lambda step: stragglers.get((rank, step), 0.0)


def lost_at(faults: SomeFaults, seed: int, rank: int) -> float:
    """When a worker is lost; infinity for never."""
    if faults is None:
        return math.inf
    if isinstance(faults, Faults):
        return faults.of_worker(seed, rank)
    return faults.get(rank, math.inf)
