"""The last agreed parameters and what an outer optimizer keeps: this rank's shard of each.

Every rank owns a part of each arena (``Communicator.shard``), steps it alone between a round's
reduction and its write-back, and needs the anchor of that part and no more. So on a host of n ranks
each array costs 1/n of the model, and a round sends what a plain average sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from localsgd.checks import checked_count
from localsgd.comm import Topology
from localsgd.comm.changes import Change
from localsgd.comm.contract import Array, Communicator, ScalarRule, Update
from localsgd.comm.dtypes import work_dtype
from localsgd.outer import Block, OuterOptimizer
from localsgd.resizing import PartsOf, SavedStates

_ANCHOR = "anchor"
_BLOCK = 32_768


class Flat(Protocol):
    """Parameters in one buffer, as in an arena."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def flat(self) -> Array: ...


class Anchor:
    """The anchors of one model's arenas, and an outer optimizer's state beside them.

    Attributes:
        rounds: how many outer steps were taken.
        outer: what takes them.
    """

    def __init__(self, outer: OuterOptimizer, arenas: Sequence[Flat], comm: Communicator) -> None:
        """Takes the parameters as they are for the anchor. Collective.

        Raises:
            MemoryError: on every rank, if the memory of a host does not suffice.
        """
        self.rounds = 0
        self.outer, self._comm = outer, comm
        self._layouts = [(arena.names, arena.flat.size, arena.dtype) for arena in arenas]
        self._shards = [comm.shard(arena.flat.size) for arena in arenas]
        lengths = [shard.stop - shard.start for shard in self._shards]
        # Shards differ by a few elements, and ranks allocate alike.
        most = [max(all_of) for all_of in zip(*comm.collect(lengths), strict=True)]
        self._arrays: list[dict[str, Array]] = []
        self._rooms: list[dict[str, Array]] = []
        for arena, length, longest in zip(arenas, lengths, most, strict=True):
            wide = work_dtype(arena.dtype)
            rooms = {_ANCHOR: comm.allocate(longest, arena.dtype)}
            for key in outer.kept:
                rooms[key] = comm.allocate(longest, wide)
            self._rooms.append(rooms)
            self._arrays.append({key: room[:length] for key, room in rooms.items()})
        self.set(arenas)

    def fits(self, arenas: Sequence[Flat]) -> bool:
        """Whether these are arenas of the same parameters."""
        return self._layouts == [(arena.names, arena.flat.size, arena.dtype) for arena in arenas]

    def set(self, arenas: Sequence[Flat]) -> None:
        """Makes the anchor what the parameters are, equal on all ranks; state stays."""
        for arena, shard, arrays in zip(arenas, self._shards, self._arrays, strict=True):
            arrays[_ANCHOR][...] = arena.flat[shard]

    def values(self, index: int, part: slice) -> Array:
        """The anchor of some elements of arena number ``index``, all of this rank's shard."""
        start = self._shards[index].start
        return self._arrays[index][_ANCHOR][part.start - start : part.stop - start]

    def gather(self, index: int, flat: Array) -> None:
        """Brings the whole anchor of arena number ``index`` to a buffer. Collective."""
        shard = self._shards[index]
        flat[shard] = self.values(index, shard)
        self._comm.allgather(flat)

    def follow(self, index: int) -> Update:
        """An update that takes the mean of arena number ``index`` for the anchor."""
        shard, anchor = self._shards[index], self._arrays[index][_ANCHOR]

        def update(part: slice, mean: Array) -> None:
            anchor[part.start - shard.start : part.stop - shard.start] = mean

        return update

    def step(self, index: int, outer: OuterOptimizer | None = None) -> Update:
        """An update that takes an outer step of arena number ``index``.

        Args:
            outer: the optimizer as it was when the round began; None takes it as it is.
        """
        return _Step(outer or self.outer, self._shards[index], self._arrays[index], self.rounds + 1)

    def copy(self, other: Anchor) -> None:
        """Takes over the arrays of another of the same parameters and ranks."""
        for mine, theirs in zip(self._arrays, other._arrays, strict=True):
            for key, array in mine.items():
                array[...] = theirs[key]

    def readable(self, change: Change, begun: int) -> list[int]:
        """The lost ranks of this host whose shards are as before the round that failed.

        Args:
            begun: how many collectives the group had begun before it.
        """
        return [rank for rank, number in change.begun.items() if number <= begun]

    def read(self, index: int, key: str, number: int, length: int, change: Change) -> Array:
        """The shard of a rank that shared this one's host, and may be lost."""
        memory = change.memory_of(self._rooms[index][key], number)
        assert memory is not None
        return memory[:length]

    def keys(self, index: int) -> Sequence[str]:
        """What there is of arena number ``index``, the anchor first."""
        return list(self._arrays[index])

    def put(self, index: int, key: str, whole: Array) -> None:
        """Takes this rank's shard of a whole array."""
        self._arrays[index][key][...] = whole[self._shards[index]]

    def state_dict(self) -> dict[str, Any]:
        """Copies of this rank's shards."""
        return {
            "rounds": self.rounds,
            "arrays": [
                {key: array.copy() for key, array in arrays.items()} for arrays in self._arrays
            ],
        }

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises what ``load_state_dict`` would, and changes nothing."""
        if not isinstance(state_dict, Mapping) or not {"rounds", "arrays"} <= set(state_dict):
            raise ValueError(
                f"an anchor's state must have 'rounds' and 'arrays', got {state_dict!r}"
            )
        checked_count("rounds", state_dict["rounds"], at_least=0)
        saved = state_dict["arrays"]
        if len(saved) != len(self._arrays):
            raise ValueError(
                f"saved anchors must be of {len(self._arrays)} arenas, got {len(saved)}"
            )
        for index, (mine, theirs) in enumerate(zip(self._arrays, saved, strict=True)):
            if set(mine) != set(theirs):
                raise ValueError(
                    f"saved shards of arena {index} must be {list(mine)}, got {list(theirs)}"
                )
            for key, array in mine.items():
                if np.shape(theirs[key]) != array.shape:
                    raise ValueError(
                        f"the saved shard {key!r} of arena {index} must have shape {array.shape}, "
                        f"got {np.shape(theirs[key])}: it is of another number of ranks, or hosts"
                    )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict`` of as many ranks on the same hosts; not collective.

        Raises:
            ValueError: if it does not fit; then nothing has changed.
        """
        self.check_state_dict(state_dict)
        self.rounds = state_dict["rounds"]
        for mine, theirs in zip(self._arrays, state_dict["arrays"], strict=True):
            for key, array in mine.items():
                array[...] = theirs[key]


def resharded(saved: SavedStates) -> dict[str, Any]:
    """This rank's state of an anchor that a group of another size or layout has saved. Collective.

    Every number is the one that was saved, whoever owns it now.
    """
    comm, before = saved.comm, saved.before
    arrays: list[dict[str, Array]] = []
    for index, shards in enumerate(saved.own["arrays"]):
        arrays.append({})
        for key in shards:
            shard = saved.at("arrays", index, key)
            count = shard.total(lambda _, values: len(values))
            whole = shard.whole(count, _shards(before, count))
            arrays[index][key] = whole[comm.shard(count)].copy()
    return {"rounds": saved.own["rounds"], "arrays": arrays}


def _shards(before: Topology, count: int) -> PartsOf:
    return lambda rank: [before.shard(count, rank)]


def step_whole(
    outer: OuterOptimizer, arrays: Mapping[str, Array], moved: Array, number: int
) -> None:
    """Takes an outer step of a whole anchor, in place, where all ranks hold the same.

    Args:
        arrays: the anchor under "anchor", and what ``outer`` keeps, all of shape ``(n,)``.
        moved: the delta.
        number: of this step, from 1.
    """
    step_to_mean(outer, arrays, arrays[_ANCHOR] - moved, number)


def step_to_mean(
    outer: OuterOptimizer, arrays: Mapping[str, Array], mean: Array, number: int
) -> None:
    """As ``step_whole``, of a mean, which becomes the new anchor as well."""
    whole = slice(0, mean.size)
    _Step(outer, whole, arrays, number)(whole, mean)


class _Step:
    """One outer step of a shard.

    Attributes:
        rule: the step of single numbers, if the optimizer has one.
    """

    def __init__(
        self, outer: OuterOptimizer, shard: slice, arrays: Mapping[str, Array], number: int
    ) -> None:
        self._outer, self._shard, self._arrays, self._number = outer, shard, arrays, number
        self._room = np.empty((2, 0))
        scalar = outer.scalar_step()
        kept = [arrays[key] for key in (_ANCHOR, *outer.kept)]
        # Half precisions are widened in between.
        same = all(array.dtype == kept[0].dtype for array in kept)
        self.rule = ScalarRule(scalar[0], kept, scalar[1]) if scalar is not None and same else None

    def __call__(self, part: slice, mean: Array) -> None:
        for start in range(part.start, part.stop, _BLOCK):
            stop = min(start + _BLOCK, part.stop)
            here = slice(start - self._shard.start, stop - self._shard.start)
            self._step(here, mean[start - part.start : stop - part.start])

    def _step(self, here: slice, values: Array) -> None:
        wide, anchor = work_dtype(values.dtype), self._arrays[_ANCHOR][here]
        mean, old = values.astype(wide, copy=False), anchor.astype(wide, copy=False)
        if self._room.shape[1] < values.size:
            self._room = np.empty((2, values.size), wide)
        delta, scratch = self._room[:, : values.size]
        np.subtract(old, mean, out=delta)
        state = {key: self._arrays[key][here] for key in self._outer.kept}
        self._outer.update(Block(mean, old, delta, scratch, state, self._number))
        if mean is not values:
            values[...] = mean
        anchor[...] = values
