"""What a round does to an array that a model keeps besides its parameters: its rule.

Most have a mean. Others have an invariant that a mean would break: a variance belongs to a mean,
a mean to the counts behind it, a singular vector to a matrix, and a mask is the same on every
worker or wrong. So a rule may name another array, or a function of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localsgd.checks import name_of
from localsgd.comm.contract import Array
from localsgd.comm.dtypes import FLOATS, INTEGERS

PlainRule: TypeAlias = Literal["mean", "max", "min", "equal", "keep"]
PLAIN: tuple[PlainRule, ...] = get_args(PlainRule)


@dataclass(frozen=True)
class Variance:
    """The rule of variances: those of all workers' data together.

        var = Σ w_i (var_i + (mean_i - mean)²) / W

    Attributes:
        mean: the name of the buffer of the means about which they are, of the same shape.
    """

    mean: str


@dataclass(frozen=True)
class WeightedMean:
    """The rule of means that stand for different numbers of samples on each worker.

        value = Σ w_i n_i value_i / Σ w_i n_i        where all n_i are 0: the mean

    Attributes:
        by: the name of the buffer of the numbers n, with rule "mean"; one for every element, or for
            every index of the first dimensions or of the last ones.
    """

    by: str


@dataclass(frozen=True)
class Derived:
    """The rule of what follows from other arrays, as a singular vector does from a matrix.

    Attributes:
        compute: gives the new values from all buffers by name, after the round has joined them and
            the parameters; those above it in order are new as well. The group's first worker calls
            it and the others get what it gave.
    """

    compute: Callable[[Mapping[str, Array]], ArrayLike]

    def __repr__(self) -> str:
        return f"Derived({name_of(self.compute)})"


Rule: TypeAlias = "PlainRule | Variance | WeightedMean | Derived"


def words_of_rule(rule: Rule) -> str:
    """The rule in words that are the same on every rank."""
    return rule if isinstance(rule, str) else repr(rule)


def default_rule(array: NDArray[Any]) -> Rule:
    """The rule of an array of which nothing is known but its values.

    The mean of infinities, as in a mask of -inf, is NaN.
    """
    if array.dtype == bool:
        return "equal"
    if array.dtype in INTEGERS:
        return "max"
    return "mean" if np.isfinite(array).all() else "keep"


def checked_rules(
    values: Mapping[str, NDArray[Any]], rules: Mapping[str, Rule] | None
) -> dict[str, Rule]:
    """The rule of every array, the default ones included.

    Args:
        rules: by name, or by a pattern of names as in ``"*.angles"``; a name comes first.

    Raises:
        TypeError: for anything but mappings, or arrays of floats, integers, booleans or complex
            numbers.
        ValueError: for a rule that is none, of no array, one of two for an array, or one that
            cannot carry its dtype.
    """
    given = {} if rules is None else rules
    if not isinstance(values, Mapping) or not isinstance(given, Mapping):
        raise TypeError(f"values and rules must be mappings by name, got {values!r} and {rules!r}")
    for name, array in values.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError(f"buffers must be numpy arrays by name, got {name!r}: {array!r}")
        if array.dtype not in FLOATS + INTEGERS and array.dtype.kind not in "bc":
            raise TypeError(
                f"buffer {name!r} must be of floats, integers, booleans or complex numbers, "
                f"got {array.dtype}"
            )
    chosen = matched_rules(list(values), given)
    checked = {name: chosen.get(name, default_rule(array)) for name, array in values.items()}
    for name, rule in checked.items():
        _check_rule(name, rule, values[name].dtype)
        if isinstance(rule, Variance | WeightedMean):
            _check_reference(name, rule, values, checked)
    return checked


def matched_rules(names: Sequence[str], rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """Which rules are whose; names that no rule means are left out.

    Raises:
        ValueError: for a rule of no array, or two different ones for an array.
    """
    chosen: dict[str, tuple[str, Rule]] = {}
    for key, rule in rules.items():
        meant = [key] if key in names else [n for n in names if fnmatchcase(n, str(key))]
        if not meant:
            raise ValueError(f"rules must be of buffers that there are, {list(names)}, got {key!r}")
        for name in meant:
            earlier = chosen.get(name)
            if earlier is None or (key == name and earlier[0] != name):
                chosen[name] = (key, rule)
            elif earlier[0] != name and earlier[1] != rule:
                raise ValueError(
                    f"a buffer must have one rule, got for {name!r} {earlier[0]!r}: "
                    f"{words_of_rule(earlier[1])} and {key!r}: {words_of_rule(rule)}"
                )
    return {name: rule for name, (_, rule) in chosen.items()}


def _check_rule(name: str, rule: object, dtype: np.dtype[Any]) -> None:
    if not isinstance(rule, Variance | WeightedMean | Derived) and rule not in PLAIN:
        raise ValueError(
            f"the rule of buffer {name!r} must be {', '.join(map(repr, PLAIN))}, a Variance, a "
            f"WeightedMean or a Derived, got {rule!r}"
        )
    if dtype in FLOATS:
        return
    allowed: tuple[object, ...] = ("mean", "equal", "keep")
    if dtype.kind != "c":
        allowed = ("max", "min", "equal", "keep")
    if not isinstance(rule, Derived) and rule not in allowed:
        raise ValueError(
            f"rule {rule if isinstance(rule, str) else repr(rule)} must have a buffer of floats, "
            f"got {name!r} of {dtype}, for which there are {', '.join(map(repr, allowed))}"
        )


def _check_reference(
    name: str,
    rule: Variance | WeightedMean,
    values: Mapping[str, NDArray[Any]],
    rules: Mapping[str, Rule],
) -> None:
    other = rule.mean if isinstance(rule, Variance) else rule.by
    if rules.get(other) != "mean" or values[other].dtype not in FLOATS:
        raise ValueError(
            f"{rule} of buffer {name!r} must name a buffer of floats with rule 'mean', got "
            f"{rules.get(other, 'no such buffer')!r}; there are {list(values)}"
        )
    shape, found = values[name].shape, values[other].shape
    if isinstance(rule, Variance):
        if found != shape:
            raise ValueError(
                f"{rule} of buffer {name!r} must name one of shape {shape}, got {found}"
            )
    elif found not in (shape[: len(found)], shape[len(shape) - len(found) :]):
        raise ValueError(
            f"{rule} of buffer {name!r} must name one whose shape begins or ends {shape}, "
            f"got {found}"
        )


def spread(numbers: Array, shape: tuple[int, ...]) -> Array:
    """Numbers of a ``WeightedMean``, shaped so that they broadcast over values of ``shape``."""
    missing = len(shape) - numbers.ndim
    if shape[: numbers.ndim] == numbers.shape:
        return numbers.reshape(*numbers.shape, *[1] * missing)
    return numbers
