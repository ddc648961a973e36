"""What can be saved, by one pair of functions: what an object holds, and taking it over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.random import Generator

from localsgd.arrays import Arena
from localsgd.comm.dtypes import FLOATS
from localsgd.resizing import Resizing, SavedStates


@dataclass(frozen=True)
class Part:
    """Something that is saved under a name.

    Attributes:
        state: what it holds now: numbers, texts, None, arrays, lists, tuples and dicts.
        load: takes that over, in place; collective if the object's own loading is.
        resized: makes what this rank takes over of what another number of ranks has saved;
            collective. None: what one of those ranks had.
    """

    state: Callable[[], Any]
    load: Callable[[Any], object]
    resized: Callable[[SavedStates], Any] | None = None


def part_of(name: str, value: object) -> Part:
    """How an object is saved.

    Raises:
        TypeError: for what cannot be.
    """
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        rule = value.resized_state if isinstance(value, Resizing) else None
        return Part(value.state_dict, value.load_state_dict, rule)
    if isinstance(value, Generator):
        return _generator(value)
    if hasattr(value, "getstate") and hasattr(value, "setstate"):
        return Part(value.getstate, value.setstate, _other_numbers)
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

    def resized(saved: SavedStates) -> Any:
        state, turns = saved.own, saved.comm.rank // saved.before.size
        return _jumped(generator, state, turns) if turns else state

    return Part(lambda: dict(generator.bit_generator.state), load, resized)


def _other_numbers(saved: SavedStates) -> Any:
    """The state of Python's generator, of another one on every rank that is new."""
    turns = saved.comm.rank // saved.before.size
    return Random(f"{saved.own} {turns}").getstate() if turns else saved.own


def _jumped(generator: Generator, state: Any, turns: int) -> Any:
    """Where a generator is that draws other numbers than the one in a state."""
    bits = type(generator.bit_generator)()
    bits.state = state
    if not hasattr(bits, "jumped"):
        raise ValueError(
            f"a generator that more ranks load than have saved must have jumped(), got {bits!r}"
        )
    return bits.jumped(turns).state


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

    def resized(saved: SavedStates) -> Any:
        own = saved.own
        return {key: saved.at(key).mean() if has_mean(own[key]) else own[key] for key in own}

    return Part(lambda: dict(arrays), load, resized)


def has_mean(value: object) -> bool:
    """Whether this is an array of floats."""
    return isinstance(value, np.ndarray) and value.dtype in FLOATS


def _replace(values: MutableMapping[Any, Any], state: Any) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(f"a saved dict must be a dict, got {state!r}")
    values.clear()
    values.update(state)
