"""What can be saved, by one pair of functions: what an object holds, and taking it over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from localsgd.arrays import Arena


@dataclass(frozen=True)
class Part:
    """Something that is saved under a name.

    Attributes:
        state: what it holds now: numbers, texts, None, arrays, lists, tuples and dicts.
        load: takes that over, in place; collective if the object's own loading is.
    """

    state: Callable[[], Any]
    load: Callable[[Any], object]


def part_of(name: str, value: object) -> Part:
    """How an object is saved.

    Raises:
        TypeError: for what cannot be.
    """
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return Part(value.state_dict, value.load_state_dict)
    if isinstance(value, Generator):
        return _generator(value)
    if hasattr(value, "getstate") and hasattr(value, "setstate"):
        return Part(value.getstate, value.setstate)
    if isinstance(value, Sequence) and value and all(isinstance(entry, Arena) for entry in value):
        return _arrays(name, {key: array for arena in value for key, array in arena.items()})
    if isinstance(value, Mapping) and value and all(_is_array(v) for v in value.values()):
        return _arrays(name, value)
    if isinstance(value, MutableMapping):
        return Part(lambda: dict(value), lambda state: _replace(value, state))
    raise TypeError(
        f"{name} must have state_dict and load_state_dict, or be an arena, arrays by name, a "
        f"random generator or a dict, got {value!r}"
    )


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)


def _generator(generator: Generator) -> Part:
    def load(state: Any) -> None:
        generator.bit_generator.state = state

    return Part(lambda: dict(generator.bit_generator.state), load)


def _arrays(name: str, arrays: Mapping[str, Any]) -> Part:
    def load(state: Any) -> None:
        if not isinstance(state, Mapping) or set(state) != set(arrays):
            names = list(state) if isinstance(state, Mapping) else state
            raise ValueError(f"the saved {name} must have {list(arrays)}, got {names}")
        for key, array in arrays.items():
            wanted, found = (array.shape, array.dtype), (np.shape(state[key]), state[key].dtype)
            if found != wanted:
                raise ValueError(
                    f"the saved {name} {key!r} must have shape {wanted[0]} and dtype {wanted[1]}, "
                    f"got {found[0]} and {found[1]}"
                )
        for key, array in arrays.items():
            array[...] = state[key]

    return Part(lambda: dict(arrays), load)


def _replace(values: MutableMapping[Any, Any], state: Any) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(f"a saved dict must be a dict, got {state!r}")
    values.clear()
    values.update(state)
