"""Does a saved optimizer state fit: everything is checked here before anything is taken over.

A ``state_dict`` is keyed by parameter name, so it does not depend on the order of arenas in
memory, nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from localsgd.checks import checked_count
from localsgd.comm.base import Array


class Rules(Protocol):
    """What of an algorithm the check needs (``Optimizer``)."""

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Every key that the algorithm may keep, without ``"step"``."""

    @property
    def counts_steps(self) -> bool:
        """Whether the algorithm keeps ``"step"``."""

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The hyperparameters in ``group``, checked."""


@dataclass
class SavedState:
    """One group of a ``state_dict`` that fits.

    Attributes:
        group: the public dict of the group.
        keys: the keys of state that every parameter of the group has, without ``"step"``.
        arrays: for every name its arrays by key.
        step: the number of steps that the group has taken.
    """

    group: dict[str, Any]
    keys: tuple[str, ...]
    arrays: Mapping[str, Mapping[str, Array]]
    step: int


def read_saved(
    state_dict: Mapping[str, Any],
    names: Sequence[Sequence[str]],
    shapes: Mapping[str, tuple[int, ...]],
    rules: Rules,
) -> list[SavedState]:
    """The groups of a ``state_dict``, if it fits these groups of parameters.

    Raises:
        TypeError, ValueError: naming the first parameter or group that does not fit.
    """
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise ValueError(
                f"an optimizer's state dict must have {key!r}, got {_keys(state_dict)}"
            )
    groups, state = state_dict["param_groups"], state_dict["state"]
    if len(groups) != len(names):
        raise ValueError(f"param_groups must be {len(names)} groups, got {len(groups)}")
    known = {name for group in names for name in group}
    for name in state:
        if name not in known:
            raise ValueError(f"state must be of parameters of this optimizer, got {name!r}")
    return [
        _read_group(index, group, list(expected), state, shapes, rules)
        for index, (group, expected) in enumerate(zip(groups, names, strict=True))
    ]


def _read_group(
    index: int,
    group: Mapping[str, Any],
    names: list[str],
    state: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    rules: Rules,
) -> SavedState:
    if list(group.get("params", ())) != names:
        raise ValueError(f"group {index} must have params {names}, got {group.get('params')}")
    try:
        hyperparameters = rules.checked(group)
    except KeyError as error:
        raise ValueError(f"group {index} must have {error}, got {_keys(group)}") from None
    arrays: dict[str, dict[str, Array]] = {name: {} for name in names}
    steps: dict[str, int] = {}
    for name in names:
        for key, value in state.get(name, {}).items():
            if key == "step" and rules.counts_steps:
                steps[name] = _step_of(name, value)
            elif key in rules.state_keys:
                arrays[name][key] = _array_of(name, key, value, shapes[name])
            else:
                raise ValueError(
                    f"state of {name!r} must have keys of {list(rules.state_keys)}, got {key!r}"
                )
    first = names[0]
    for name in names:
        if set(arrays[name]) != set(arrays[first]):
            raise ValueError(
                f"the parameters of group {index} must have the same state, got "
                f"{sorted(arrays[first])} for {first!r} and {sorted(arrays[name])} for {name!r}"
            )
        if steps.get(name) != steps.get(first):
            raise ValueError(
                f"the parameters of group {index} must have taken the same number of steps, got "
                f"{steps.get(first)} for {first!r} and {steps.get(name)} for {name!r}"
            )
    if rules.counts_steps and arrays[first] and first not in steps:
        raise ValueError(f"state of {first!r} must have 'step', got {sorted(arrays[first])}")
    taken = {**group, **hyperparameters, "params": names}
    return SavedState(taken, tuple(arrays[first]), arrays, steps.get(first, 0))


def _step_of(name: str, value: object) -> int:
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return checked_count(f"'step' of {name!r}", value, at_least=0)


def _array_of(name: str, key: str, value: object, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{key!r} of {name!r} must be an array of numbers, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{key!r} of {name!r} must have shape {shape}, got {array.shape}")
    return array


def _keys(value: object) -> str:
    return str(list(value)) if isinstance(value, Mapping) else repr(value)
