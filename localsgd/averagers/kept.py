"""What an averager keeps of every arena: made when training begins, and saved with the averager.

A state that comes before training begins waits until the arrays are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localsgd.comm.contract import Array
from localsgd.comm.dtypes import FLOATS
from localsgd.resizing import SavedStates


class Kept:
    """Arrays by name for every arena, under one key of the averager's state.

    Attributes:
        arrays: for every arena its arrays; none before training begins.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.arrays: list[dict[str, Array]] = []
        self._loaded: Sequence[Mapping[str, Any]] | None = None

    @property
    def begun(self) -> bool:
        """Whether the arrays are there."""
        return bool(self.arrays)

    def require_begun(self) -> None:
        """Raises ValueError unless they are."""
        if not self.begun:
            raise ValueError("begin(params) must be called before the first local step, got none")

    def begin(self, arrays: list[dict[str, Array]]) -> None:
        """Takes these arrays, with the values that were loaded, if any were.

        Raises:
            ValueError: if those do not fit; then there are no arrays still.
        """
        loaded = {self.key: self._loaded}
        if self._loaded is not None:
            _check_fits(arrays, self._loaded)
        self.arrays, self._loaded = arrays, None
        if loaded[self.key] is not None:
            self.load_state_dict(loaded)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the arrays under the key."""
        if not self.begun:
            return {self.key: self._loaded}
        return {self.key: [{n: array.copy() for n, array in of.items()} for of in self.arrays]}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """What ``state_dict`` gives, of a group of another size: means. Collective."""
        kept = saved.own.get(self.key)
        if kept is None:
            return {self.key: None}
        found = []
        for index, arrays in enumerate(kept):
            at = saved.at(self.key, index)
            found.append({n: at.at(n).mean() if _has_mean(a) else a for n, a in arrays.items()})
        return {self.key: found}

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ValueError if ``load_state_dict`` would, and changes nothing."""
        if not isinstance(state_dict, Mapping) or self.key not in state_dict:
            raise ValueError(f"an averager's state must have {self.key!r}, got {state_dict!r}")
        if state_dict[self.key] is not None and self.begun:
            _check_fits(self.arrays, state_dict[self.key])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what ``check_state_dict`` has found right."""
        saved = state_dict[self.key]
        if saved is None or not self.begun:
            self.arrays, self._loaded = [], saved
            return
        for mine, theirs in zip(self.arrays, saved, strict=True):
            for name, array in mine.items():
                array[...] = theirs[name]


def _has_mean(array: Array) -> bool:
    return array.dtype in FLOATS


def _check_fits(arrays: Sequence[Mapping[str, Array]], saved: Sequence[Mapping[str, Any]]) -> None:
    if len(saved) != len(arrays):
        raise ValueError(f"what is saved must be of {len(arrays)} arenas, got {len(saved)}")
    for mine, theirs in zip(arrays, saved, strict=True):
        if set(mine) != set(theirs):
            raise ValueError(
                f"what is saved of an arena must be {sorted(mine)}, got {sorted(theirs)}"
            )
        for name, array in mine.items():
            if np.shape(theirs[name]) != array.shape:
                raise ValueError(
                    f"a saved {name} must have shape {array.shape}, got {np.shape(theirs[name])}"
                )
