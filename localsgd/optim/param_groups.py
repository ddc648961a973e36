"""Which numbers a parameter group stands for: names in public, stretches of flat memory within.

Parameters that lie side by side in an arena are one stretch, so an update of a group is a few
long passes over memory rather than one for every parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from localsgd.arrays import Arena, Subset
from localsgd.comm.contract import Array, Communicator

Group: TypeAlias = dict[str, Any]
Column: TypeAlias = "dict[np.dtype[Any], Array]"
ParamsLike: TypeAlias = "Arena | Subset | Sequence[Arena | Subset] | Sequence[Mapping[str, Any]]"


@dataclass
class Run:
    """Neighbouring parameters of one group in one arena.

    Attributes:
        arena: where they lie.
        part: their part of ``arena.flat``.
        names: the parameters, in order.
        state: the algorithm's arrays of the run's length, by key.
    """

    arena: Arena
    part: slice
    names: list[str]
    state: dict[str, Array] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of arithmetic and state."""
        return np.promote_types(self.arena.dtype, np.float32)

    @property
    def count(self) -> int:
        """How many numbers the run has."""
        return int(self.part.stop - self.part.start)

    def blocks(self, length: int) -> Iterator[tuple[slice, tuple[int, ...]]]:
        """Cuts the run into parts of ``arena.flat`` of at most this length, with their shapes."""
        for start in range(self.part.start, self.part.stop, length):
            stop = min(start + length, self.part.stop)
            yield slice(start, stop), (stop - start,)

    def parameters(self) -> Iterator[tuple[slice, tuple[int, ...]]]:
        """Cuts the run into its parameters, with their shapes."""
        for name in self.names:
            yield self.arena.slice_of(name), self.arena[name].shape

    def views(self, flat: Array) -> dict[str, Array]:
        """For every name its shaped view of an array of the run's length."""
        shift = self.part.start
        return {
            name: flat[part.start - shift : part.stop - shift].reshape(shape)
            for name, (part, shape) in zip(self.names, self.parameters(), strict=True)
        }


@dataclass
class Member:
    """What the optimizer knows of a group beyond its public dict.

    The state under one key is a column: one array for each dtype, in which the runs follow each
    other.

    Attributes:
        runs: the stretches of memory.
        step: the number of steps taken, shape ``()``.
        columns: the state, by key and dtype.
        reserved: memory that columns are to lie in, by key and dtype.
    """

    runs: list[Run]
    step: Array = field(default_factory=lambda: np.zeros((), np.int64))
    columns: dict[str, Column] = field(default_factory=dict)
    reserved: dict[str, Column] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The parameters of the group."""
        return [name for run in self.runs for name in run.names]

    def make(self, keys: Iterable[str]) -> None:
        """Makes columns of zeros, in reserved memory where there is some."""
        for key in keys:
            column = self.reserved.get(key) or self._new_column(np.zeros)
            for values in column.values():
                values[...] = 0
            self._place(key, column)

    def reserve(self, keys: Iterable[str], comm: Communicator) -> None:
        """Gives columns memory that workers reduce in one pass; what they hold moves there.

        Collective.
        """
        for key in keys:
            if key in self.reserved:
                continue
            column = self.reserved[key] = self._new_column(comm.allocate)
            if key in self.columns:
                for dtype, values in self.columns[key].items():
                    column[dtype][...] = values
                self._place(key, column)

    def forget(self) -> None:
        """Drops all state, as before the first step."""
        self.columns.clear()
        for run in self.runs:
            run.state.clear()
        self.step[...] = 0

    def _new_column(self, allocate: Callable[[int, np.dtype[Any]], Array]) -> Column:
        counts: Counter[np.dtype[Any]] = Counter()
        for run in self.runs:
            counts[run.dtype] += run.count
        return {dtype: allocate(count, dtype) for dtype, count in counts.items()}

    def _place(self, key: str, column: Column) -> None:
        self.columns[key] = column
        begins: Counter[np.dtype[Any]] = Counter()
        for run in self.runs:
            begin = begins[run.dtype]
            run.state[key] = column[run.dtype][begin : begin + run.count]
            begins[run.dtype] += run.count


def as_groups(params: object) -> list[Mapping[str, Any]]:
    """The groups that a user gave in any of the ways that ``ParamsLike`` allows."""
    if isinstance(params, Arena | Subset):
        return [{"params": params}]
    if not isinstance(params, Sequence) or isinstance(params, str) or not params:
        raise TypeError(
            "params must be an Arena, a Subset, or a sequence of these or of parameter groups, "
            f"got {params!r}"
        )
    if all(isinstance(entry, Mapping) and not isinstance(entry, Arena) for entry in params):
        return list(params)
    return [{"params": list(params)}]


def subsets_of(group: Mapping[str, Any]) -> list[Subset]:
    """The parameters that a user gave as ``"params"`` of a group."""
    if "params" not in group:
        raise ValueError(f"a parameter group must have 'params', got {sorted(group)}")
    given = group["params"]
    entries = [given] if isinstance(given, Arena | Subset) else given
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise TypeError(f"'params' of a group must be an Arena or a Subset, got {given!r}")
    for entry in entries:
        if not isinstance(entry, Arena | Subset):
            raise TypeError(f"'params' of a group must be an Arena or a Subset, got {entry!r}")
    return [Subset(e, e.names) if isinstance(e, Arena) else e for e in entries]


def comm_of(groups: Sequence[Mapping[str, Any]]) -> Communicator:
    """The workers that hold the first parameters given."""
    return subsets_of(groups[0])[0].arena.comm


def runs_of(subsets: Sequence[Subset], comm: Communicator, taken: set[str]) -> list[Run]:
    """Merges parameters that lie side by side; adds their names to ``taken``."""
    runs: list[Run] = []
    for subset in subsets:
        if subset.arena.comm is not comm:
            raise ValueError("arenas of one optimizer must belong to one communicator, got two")
        for name in subset.names:
            if name in taken:
                raise ValueError(f"a parameter must be in one group only, got {name!r} twice")
            taken.add(name)
            part = subset.arena.slice_of(name)
            last = runs[-1] if runs else None
            if last and last.arena is subset.arena and last.part.stop == part.start:
                last.part = slice(last.part.start, part.stop)
                last.names.append(name)
            else:
                runs.append(Run(subset.arena, part, [name]))
    return runs


def lines_of(prepared: Sequence[tuple[Group, Member]]) -> list[str]:
    """One line a group and hyperparameter, for comparison between ranks."""
    return [
        f"group {index}: {key}={group[key]!r}"
        for index, (group, _) in enumerate(prepared)
        for key in ("params", *(key for key in group if key != "params"))
    ]
