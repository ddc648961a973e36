"""Is a number that a user gave usable: one wording for every count and every hyperparameter.

A message says what must hold, then what was given. A bool is not a number here, since ``True``
for a period is a mistake that Python would take for 1.
"""

from __future__ import annotations

import sys
from math import isfinite
from numbers import Integral, Real


def checked_count(name: str, value: object, *, at_least: int) -> int:
    """The number of steps, workers or samples that a user gave under this name.

    Raises:
        TypeError: unless it is an integer (Python's or numpy's, not a bool).
        ValueError: if it is less than ``at_least``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return int(value)


def checked_number(
    name: str, value: object, *, at_least: float = 0.0, below: float = float("inf")
) -> float:
    """The finite number that a user gave under this name, in ``[at_least, below)``.

    Raises:
        TypeError: unless it is a real number (Python's or numpy's, not a bool).
        ValueError: if it is not finite or out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least:g}, got {value}")
    if number >= below:
        raise ValueError(f"{name} must be less than {below:g}, got {value}")
    return number


def checked_flag(name: str, value: object) -> bool:
    """The flag that a user gave under this name.

    Raises:
        TypeError: unless it is True or False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def caller_level() -> int:
    """The ``stacklevel`` with which the calling function warns the code outside this package.

    A constructor of ours may be called by another of ours; the warning is for whoever called
    the first.
    """
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


def _is_ours(module: str) -> bool:
    return module == "localsgd" or module.startswith("localsgd.")
