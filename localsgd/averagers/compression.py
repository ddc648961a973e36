"""Compressed rounds: what hosts send is how far they are from what all agreed on last.

With r the last agreed parameters, C a codec, and for every host what it has not sent so far, e:

    sends   C(x - r + e)      keeps   e = x - r + e - C(…)      counts as   r + C(…)

The owner of a part does the same with the result, and every rank ends with r + C(…), the next r.
All hosts are alike: the owner's own values count as what they decode to, as in the papers, where
each worker's are compressed once. A host's ranks average exactly before that.

Sources: error feedback, Karimireddy et al. (arXiv 1901.09847); on the way back as well, Tang et
al., DoubleSqueeze (arXiv 1905.05957).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from localsgd.averagers.anchor import Flat
from localsgd.checks import checked_count
from localsgd.comm.changes import Change
from localsgd.comm.codecs import Codec, Way, keyed_at
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.resizing import SavedStates, gathered


class Compression:
    """What one rank keeps for the parts of one buffer that it combines for its host.

    Attributes:
        name: of the codec.
        rounds: how many there were.
    """

    def __init__(
        self, codec: Codec, buffer: Flat, comm: Communicator, *, error_feedback: bool
    ) -> None:
        """Takes the buffer's values, equal on all ranks, for what was agreed on last."""
        self.name = f"{codec.name}{'' if error_feedback else ' without error feedback'}"
        self.rounds = 0
        self._codec, self._rank = codec, comm.rank
        self._parts = [part for part in comm.held(buffer.flat.size) if part.start < part.stop]
        self._ends = np.cumsum([0, *(part.stop - part.start for part in self._parts)])
        self._agreed = np.empty(self._ends[-1], buffer.dtype)
        self._unsent: dict[Way, Array] = {}
        if error_feedback:
            wide = work_dtype(buffer.dtype)
            self._unsent = {way: np.zeros(self._ends[-1], wide) for way in ("values", "result")}
        self.follow(buffer.flat)

    def follow(self, values: Array) -> None:
        """Takes the values of a buffer, equal on all ranks, for what was agreed on last."""
        for part, begin in zip(self._parts, self._ends[:-1], strict=True):
            self._agreed[begin : begin + part.stop - part.start] = values[part]

    def follow_mean(self, buffer: Flat, comm: Communicator) -> None:
        """Takes the mean of the ranks' values for what was agreed on last. Collective."""
        mean = buffer.flat.copy()
        comm.allreduce(mean, "mean", label="what compressed rounds begin from")
        self.follow(mean)

    def take_over(
        self, before: Compression | None, buffer: Flat, comm: Communicator, change: Change
    ) -> None:
        """Goes on where this rank's compression stood before the group changed. Collective.

        What was agreed on is the same on every host, so that another has what a lost rank had;
        where nobody has it, it becomes the mean of the buffers as they are. What a lost rank's
        host had not sent of that rank's parts is lost, and a new rank begins with nothing unsent.

        Args:
            before: None on a rank that is new; one must not be.
            buffer: as before the round that failed.
            comm: the group as it is, for which this was made.
            change: what became of it.
        """
        count = buffer.flat.size
        parts, agreed = (before._parts, before._agreed) if before else ([], self._agreed[:0])
        self.rounds = max(comm.collect(before.rounds if before else 0))
        all_agreed, lost = gathered(parts, agreed, count, comm)
        if lost:
            mean = buffer.flat.copy()
            comm.allreduce(mean, "mean", label="what nobody has any more")
            for part in lost:
                all_agreed[part] = mean[part]
        self.follow(all_agreed)
        if not self._unsent:
            return
        nothing = self._unsent["values"][:0]
        near = comm.split(comm.topology.host_of[comm.rank])
        of_host, _ = gathered(parts, before._unsent["values"] if before else nothing, count, near)
        near.close()
        owned, results = [], nothing
        if before:
            part = change.before.shard(count, change.numbers[comm.rank])
            results = before._unsent["result"][before._place_of(part.start) :]
            owned, results = [part], results[: part.stop - part.start]
        of_all, _ = gathered(owned, results, count, comm)
        of_owner, now = np.zeros_like(of_all), comm.shard(count)
        of_owner[now] = of_all[now]
        self._unsent["values"][...] = self._own(of_host)
        self._unsent["result"][...] = self._own(of_owner)

    def _own(self, whole: Array) -> Array:
        """The parts of this rank, one after the other."""
        return np.concatenate([whole[:0], *(whole[part] for part in self._parts)])

    def encoded_bytes(self, count: int) -> int:
        return self._codec.encoded_bytes(count)

    def at(self, part: slice, way: Way) -> Codec:
        begin = self._place_of(part.start)
        here = slice(begin, begin + part.stop - part.start)
        unsent = self._unsent.get(way)
        return _Place(
            keyed_at(self._codec, self._rank, self.rounds, way, part.start),
            self._agreed[here],
            None if unsent is None else unsent[here],
            is_result=way == "result",
        )

    def state_dict(self) -> dict[str, Any]:
        """Copies of this rank's arrays."""
        unsent = {way: values.copy() for way, values in self._unsent.items()}
        return {"rounds": self.rounds, "agreed": self._agreed.copy(), "unsent": unsent}

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ValueError if ``load_state_dict`` would, and changes nothing."""
        checked_count("rounds", state_dict["rounds"], at_least=0)
        if set(state_dict["unsent"]) != set(self._unsent):
            raise ValueError(
                f"saved residuals must be {list(self._unsent)}, got {list(state_dict['unsent'])}"
            )
        for values in (state_dict["agreed"], *state_dict["unsent"].values()):
            if np.shape(values) != self._agreed.shape:
                raise ValueError(
                    f"saved parts of a compressed buffer must have shape {self._agreed.shape}, got "
                    f"{np.shape(values)}: it is of another number of ranks, or hosts"
                )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict`` of as many ranks on the same hosts; not collective."""
        self.check_state_dict(state_dict)
        self.rounds = state_dict["rounds"]
        self._agreed[...] = state_dict["agreed"]
        for way, values in self._unsent.items():
            values[...] = state_dict["unsent"][way]

    def _place_of(self, element: int) -> int:
        """Where an element of the buffer is in the arrays."""
        for part, begin in zip(self._parts, self._ends[:-1], strict=True):
            if part.start <= element < part.stop:
                return int(begin + element - part.start)
        return 0


def resized(saved: SavedStates) -> dict[str, Any]:
    """This rank's state of a buffer that a group of another size or layout has saved. Collective.

    Every host begins with the mean of what hosts had not sent, by their shares of the workers, so
    that all that was moved is sent (closed form 11).
    """
    comm, before = saved.comm, saved.before
    agreed, first = saved.at("agreed"), set(before.hosts[0])
    # The ranks of a host have all of it together.
    count = agreed.total(lambda rank, values: len(values) if rank in first else 0)
    held = comm.held(count)

    def of_first(rank: int) -> list[slice]:
        return before.held(count, rank) if rank in first else []

    def share_of(rank: int) -> float:
        return len(before.neighbours(rank)) / before.size

    def parts(whole: Array) -> Array:
        return np.concatenate([whole[:0], *(whole[part] for part in held)])

    found = {"rounds": saved.own["rounds"], "agreed": parts(agreed.whole(count, of_first))}
    unsent: dict[str, Array] = {}
    if "values" in saved.own["unsent"]:
        values, result = saved.at("unsent", "values"), saved.at("unsent", "result")
        unsent["values"] = parts(values.sum(count, lambda rank: before.held(count, rank), share_of))
        # Zero where a rank is not the owner.
        of_all = result.sum(count, lambda rank: before.held(count, rank), lambda _: 1.0)
        own = np.zeros_like(of_all)
        own[comm.shard(count)] = of_all[comm.shard(count)]
        unsent["result"] = parts(own)
    return {**found, "unsent": unsent}


class _Place:
    """The codec for one part: it adds what is not sent yet, and notes what is not sent now."""

    def __init__(
        self, codec: Codec, agreed: Array, unsent: Array | None, *, is_result: bool
    ) -> None:
        self.name = codec.name
        self._codec, self._agreed, self._unsent = codec, agreed, unsent
        self._is_result = is_result

    def encoded_bytes(self, count: int) -> int:
        return self._codec.encoded_bytes(count)

    def encode(self, values: Array, message: Array) -> None:
        wanted = values.astype(work_dtype(values.dtype))
        if self._unsent is not None:
            wanted += self._unsent
        self._codec.encode(wanted - self._agreed, message)
        if self._unsent is not None:
            found = np.empty_like(values)
            self._add_decoded(message, found)
            np.subtract(wanted, found, out=self._unsent)

    def decode(self, message: Array, values: Array) -> None:
        self._add_decoded(message, values)
        if self._is_result:
            self._agreed[...] = values

    def _add_decoded(self, message: Array, values: Array) -> None:
        """What was agreed on and what the message has, in the dtype of the values."""
        moved = np.empty(values.size, work_dtype(values.dtype))
        self._codec.decode(message, moved)
        moved += self._agreed
        values[...] = moved
