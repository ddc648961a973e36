"""Outer steps of single numbers: what ``update`` of an optimizer does to each, in the same order.

``OuterOptimizer.scalar_step`` says how they are called. All numbers are of one dtype; ``rest`` is
1 - lr, and where it is 0 no bit of the mean changes.
"""

from __future__ import annotations

from typing import Any


def sgd(mean: Any, anchor: Any, rest: Any) -> tuple[Any]:
    """Without momentum."""
    return (mean + (anchor - mean) * rest if rest != 0 else mean,)


def heavy_ball(
    mean: Any, anchor: Any, old: Any, rest: Any, momentum: Any, pull: Any
) -> tuple[Any, Any]:
    """``old`` is the momentum's buffer; ``pull`` is lr · momentum."""
    delta = anchor - mean
    value = mean + delta * rest if rest != 0 else mean
    return value - old * pull, old * momentum + delta


def nesterov(
    mean: Any, anchor: Any, old: Any, rest: Any, momentum: Any, pull: Any
) -> tuple[Any, Any]:
    """As ``heavy_ball``, but the new buffer pulls."""
    delta = anchor - mean
    new = old * momentum + delta
    value = mean + delta * rest if rest != 0 else mean
    return value - new * pull, new


def slowmo(
    mean: Any, anchor: Any, old: Any, rest: Any, gamma: Any, beta: Any, pull: Any
) -> tuple[Any, Any]:
    """``old`` is the slow momentum; ``pull`` is alpha · gamma · beta and gamma above 0."""
    delta = anchor - mean
    value = mean + delta * rest if rest != 0 else mean
    return value - old * pull, old * beta + delta / gamma
