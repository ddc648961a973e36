"""How long a step is: learning rates as pure functions of the step.

A rate sees the number of steps taken and the group's initial rate, and nothing else. So every
rank sets the same rate, a resumed run needs no more state than the step, and any step can be
asked for at any time.

Source: the closed forms of torch.optim.lr_scheduler (PyTorch 2.13), whose step 0 is the first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from typing import Any, Protocol, runtime_checkable

from localsgd.checks import checked_count, checked_number, name_of, words_of


@runtime_checkable
class Rate(Protocol):
    """A learning rate for every step."""

    def at(self, step: int, initial: float) -> float:
        """The rate after ``step`` steps, for a group that was made with rate ``initial``."""


@dataclass(frozen=True)
class _Scaled:
    """The initial rate times a function of the step."""

    factor: Callable[[int], float]
    words: str

    def at(self, step: int, initial: float) -> float:
        return initial * self.factor(step)

    def __repr__(self) -> str:
        return self.words


@dataclass(frozen=True)
class _Cosine:
    steps: int
    minimum: float

    def at(self, step: int, initial: float) -> float:
        return _between(initial, self.minimum, min(step, self.steps) / self.steps)

    def __repr__(self) -> str:
        return f"cosine({self.steps}, minimum={self.minimum})"


@dataclass(frozen=True)
class _Chain:
    rates: tuple[Rate, ...]
    starts: tuple[int, ...]

    def at(self, step: int, initial: float) -> float:
        index = bisect_right(self.starts, step)
        since = step - (self.starts[index - 1] if index else 0)
        return self.rates[index].at(since, initial)

    def __repr__(self) -> str:
        rates = ", ".join(words_of(rate) for rate in self.rates)
        return f"chain([{rates}], starts={list(self.starts)})"


def constant(factor: float = 1.0) -> Rate:
    """The initial rate times ``factor``, at every step."""
    factor = checked_number("factor", factor)
    return _Scaled(lambda step: factor, f"constant({factor})")


def decay(every: int, gamma: float = 0.1) -> Rate:
    """Times ``gamma`` after every so many steps: ``initial · gamma ** (step // every)``.

    >>> [decay(2, 0.5).at(step, 8.0) for step in range(6)]
    [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    """
    every, gamma = checked_count("every", every, at_least=1), checked_number("gamma", gamma)
    return _Scaled(lambda step: gamma ** (step // every), f"decay({every}, gamma={gamma})")


def milestones(steps: Sequence[int], gamma: float = 0.1) -> Rate:
    """Times ``gamma`` at each of these steps.

    >>> [milestones([1, 3], 0.5).at(step, 8.0) for step in range(5)]
    [8.0, 4.0, 4.0, 2.0, 2.0]
    """
    marks, gamma = _ascending("steps", steps), checked_number("gamma", gamma)
    return _Scaled(
        lambda step: gamma ** bisect_right(marks, step), f"milestones({list(marks)}, gamma={gamma})"
    )


def linear(steps: int, start: float, end: float = 1.0) -> Rate:
    """From ``start`` to ``end`` times the initial rate, in a straight line; then it stays.

    >>> [linear(4, 0.0).at(step, 8.0) for step in range(6)]
    [0.0, 2.0, 4.0, 6.0, 8.0, 8.0]
    """
    steps = checked_count("steps", steps, at_least=1)
    start, end = checked_number("start", start), checked_number("end", end)
    return _Scaled(
        lambda step: start + (end - start) * min(step, steps) / steps,
        f"linear({steps}, start={start}, end={end})",
    )


def cosine(steps: int, *, minimum: float = 0.0) -> Rate:
    """From the initial rate down to ``minimum`` on half a wave of the cosine; then it stays.

    (PyTorch's would rise again.)

    >>> [round(cosine(4).at(step, 8.0), 3) for step in range(6)]
    [8.0, 6.828, 4.0, 1.172, 0.0, 0.0]
    """
    steps = checked_count("steps", steps, at_least=1)
    return _Cosine(steps, checked_number("minimum", minimum))


def one_cycle(
    steps: int, *, rising: float = 0.3, start_divisor: float = 25.0, end_divisor: float = 1e4
) -> Rate:
    """Up to the initial rate and down again, both on half waves of the cosine.

    The rise takes the share ``rising`` of the ``steps`` and begins at initial / start_divisor;
    the fall ends in the last step at initial / (start_divisor · end_divisor). As PyTorch's
    ``OneCycleLR`` with ``max_lr`` the initial rate; momentum is left alone.

    >>> [round(one_cycle(6, rising=0.5, start_divisor=8.0, end_divisor=1.0).at(step, 8.0), 3)
    ...  for step in range(6)]
    [1.0, 4.5, 8.0, 6.25, 2.75, 1.0]
    """
    steps = checked_count("steps", steps, at_least=2)
    share = checked_number("rising", rising)
    if share > 1:
        raise ValueError(f"rising must be at most 1, got {rising}")
    low = 1 / _divisor("start_divisor", start_divisor)
    end = low / _divisor("end_divisor", end_divisor)
    top = share * steps - 1

    def factor(step: int) -> float:
        step = min(step, steps - 1)
        if step <= top:
            return _between(low, 1.0, step / top if top else 1.0)
        return _between(1.0, end, (step - top) / (steps - 1 - top))

    words = f"rising={rising}, start_divisor={start_divisor}, end_divisor={end_divisor}"
    return _Scaled(factor, f"one_cycle({steps}, {words})")


def from_function(factor: Callable[[int], float]) -> Rate:
    """The initial rate times ``factor(step)``."""
    if not callable(factor):
        raise TypeError(f"factor must be a function of the step, got {factor!r}")
    return _Scaled(factor, f"from_function({name_of(factor)})")


def chain(rates: Sequence[Rate], starts: Sequence[int]) -> Rate:
    """One rate after the other: rate number i+1 takes over at ``starts[i]``, counting from 0.

    >>> warm_then_cosine = chain([linear(2, 0.5), cosine(4)], starts=[2])
    >>> [round(warm_then_cosine.at(step, 8.0), 3) for step in range(7)]
    [4.0, 6.0, 8.0, 6.828, 4.0, 1.172, 0.0]
    """
    for rate in rates:
        if not isinstance(rate, Rate):
            raise TypeError(f"rates must have at(step, initial), as cosine(9) has, got {rate!r}")
    marks = _ascending("starts", starts)
    if len(rates) != len(marks) + 1:
        raise ValueError(f"starts must be one fewer than the {len(rates)} rates, got {list(marks)}")
    return _Chain(tuple(rates), marks)


class Grouped(Protocol):
    """Whatever has parameter groups: an optimizer, or its wrapper."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


def apply_rate(rate: Rate, step: int, groups: Sequence[dict[str, Any]]) -> None:
    """Sets the learning rate of all groups, and remembers in each the one it was made with.

    Raises:
        ValueError: if a group has none, as those of optax.
    """
    for group in groups:
        if "lr" not in group:
            raise ValueError(f"a group must have 'lr' for a rate to set, got keys {list(group)}")
        group["lr"] = rate.at(step, group.setdefault("initial_lr", group["lr"]))


class Scheduler:
    """Sets the learning rates of an optimizer at a pace of its own, as once an epoch.

    For a rate of the training step, give it to the wrapper instead (``rate=``), which has a
    counter. Here, as in PyTorch, ``step()`` goes after the optimizer's.

    Attributes:
        last_step: how often ``step`` was called.
        rate: the learning rate as a function of it; may be replaced at any time.
    """

    def __init__(self, optimizer: Grouped, rate: Rate) -> None:
        """Sets the rates of step 0; not collective.

        Raises:
            TypeError: if ``rate`` has no ``at``.
        """
        if not isinstance(rate, Rate):
            raise TypeError(f"rate must have at(step, initial), as cosine(9) has, got {rate!r}")
        self.rate, self.last_step, self._optimizer = rate, 0, optimizer
        apply_rate(rate, 0, optimizer.param_groups)

    def step(self) -> None:
        """Moves on by one and sets the learning rates."""
        self.last_step += 1
        apply_rate(self.rate, self.last_step, self._optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The position, as a JSON value."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a ``state_dict`` and sets the learning rates; load the optimizer's first."""
        if "last_step" not in state_dict:
            raise ValueError(f"a scheduler's state dict must have 'last_step', got {state_dict}")
        self.last_step = checked_count("last_step", state_dict["last_step"], at_least=0)
        apply_rate(self.rate, self.last_step, self._optimizer.param_groups)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + cos(pi * share)) / 2


def _divisor(name: str, value: float) -> float:
    if checked_number(name, value) == 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return float(value)


def _ascending(name: str, steps: Sequence[int]) -> tuple[int, ...]:
    marks = tuple(checked_count(f"every one of {name}", step, at_least=0) for step in steps)
    if any(later <= earlier for earlier, later in pairwise(marks)):
        raise ValueError(f"{name} must ascend, got {list(marks)}")
    return marks
