"""Does a saved optimizer state fit: everything is checked here before anything is taken over.

A ``state_dict`` is keyed by parameter name, so it does not depend on the order of arenas in
memory, nor on the number of workers. Those of torch.optim, keyed by position, are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from localsgd.checks import checked_count
from localsgd.comm.contract import Array


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


@dataclass(frozen=True)
class Loaded:
    """What a load has done, by parameter name.

    Attributes:
        taken: the parameters whose state was taken over.
        missing: those of this optimizer that had none in the state dict.
        unknown: those of the state dict that this optimizer does not have.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


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
    groups: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    rules: Rules,
    *,
    strict: bool,
) -> tuple[list[SavedState], Loaded]:
    """The state for these groups of parameters, if it fits them.

    Args:
        groups: the optimizer's own groups; unless ``strict`` they keep their hyperparameters.
        shapes: of every parameter, by name.
        strict: whether groups and parameters must be the same.

    Raises:
        TypeError, ValueError: naming the first parameter or group that does not fit.
    """
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise ValueError(
                f"an optimizer's state dict must have {key!r}, got {_keys(state_dict)}"
            )
    _check_form(state_dict["param_groups"], state_dict["state"])
    names = [list(group["params"]) for group in groups]
    saved_groups, state = _by_name(state_dict["param_groups"], state_dict["state"], groups)
    known = {name for group in names for name in group}
    unknown = tuple(str(name) for name in state if name not in known)
    if strict:
        if len(saved_groups) != len(names):
            raise ValueError(f"param_groups must be {len(names)} groups, got {len(saved_groups)}")
        if unknown:
            raise ValueError(f"state must be of parameters of this optimizer, got {unknown[0]!r}")
    read = [
        _read_group(index, group if strict else own, own["params"], state, shapes, rules, strict)
        for index, (group, own) in enumerate(
            zip(saved_groups if strict else groups, groups, strict=True)
        )
    ]
    taken = tuple(name for saved in read for name in saved.group["params"] if state.get(name))
    missing = tuple(name for group in names for name in group if name not in taken)
    return read, Loaded(taken, missing, unknown)


def _check_form(groups: object, state: object) -> None:
    entries = list(groups) if isinstance(groups, Sequence) else [None]
    for group in entries:
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), Sequence):
            raise TypeError(f"param_groups must be dicts with 'params', a list, got {groups!r}")
    if not isinstance(state, Mapping) or not all(isinstance(s, Mapping) for s in state.values()):
        raise TypeError(f"state must be a dict of dicts by parameter, got {state!r}")


def _by_name(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Any, Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]],
) -> tuple[Sequence[Mapping[str, Any]], Mapping[Any, Mapping[str, Any]]]:
    """Groups and state with names for positions, if they are torch.optim's."""
    if not any(isinstance(index, int) for group in groups for index in group["params"]):
        return groups, state
    name_of: dict[Any, str] = {}
    for number, (group, ours) in enumerate(zip(groups, own, strict=False)):
        expected = ours["params"]
        if len(group["params"]) != len(expected):
            raise ValueError(
                f"group {number} must have {len(expected)} params, {list(expected)}, "
                f"got {len(group['params'])} positions"
            )
        name_of.update(zip(group["params"], expected, strict=True))
    known = {"initial_lr", "name", *own[0]}
    named = [
        {key: value for key, value in group.items() if key in known}
        | {"params": [name_of.get(index, index) for index in group["params"]]}
        for group in groups
    ]
    return named, {name_of.get(index, index): values for index, values in state.items()}


def _read_group(
    index: int,
    group: Mapping[str, Any],
    names: list[str],
    state: Mapping[Any, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    rules: Rules,
    strict: bool,
) -> SavedState:
    if list(group["params"]) != names:
        raise ValueError(f"group {index} must have params {names}, got {group['params']}")
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
            elif key not in rules.state_keys:
                raise ValueError(
                    f"state of {name!r} must have keys of {list(rules.state_keys)}, got {key!r}"
                )
            elif value is not None:
                arrays[name][key] = _array_of(name, key, value, shapes[name])
    given = [name for name in names if strict or arrays[name]]
    if given:
        _check_alike(index, given, arrays, steps)
    keys = tuple(arrays[given[0]]) if given else ()
    if rules.counts_steps and keys and given[0] not in steps:
        raise ValueError(f"state of {given[0]!r} must have 'step', got {sorted(keys)}")
    taken = {**group, **hyperparameters, "params": names}
    found = {name: arrays[name] for name in given}
    return SavedState(taken, keys, found, steps.get(given[0], 0) if given else 0)


def _check_alike(
    index: int,
    names: Sequence[str],
    arrays: Mapping[str, Mapping[str, Array]],
    steps: Mapping[str, int],
) -> None:
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


def _step_of(name: str, value: object) -> int:
    if hasattr(value, "__array__") and np.asarray(value).shape == ():
        value = np.asarray(value).item()
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
