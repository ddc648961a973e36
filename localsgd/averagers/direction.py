"""A mean that keeps lengths: of every tensor the workers' directions are averaged, and their norms.

Source: Decoupled DiLoCo (arXiv 2604.21428), radial-directional averaging. Each worker's moves may
go through a codec before that, as in Streaming DiLoCo (arXiv 2501.18512).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from localsgd.arrays import Arena
from localsgd.averagers.agreeing import checked_codec, require_carried
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.messages import Messages
from localsgd.averagers.moves import Merged, MovesAverager
from localsgd.checks import agreed_among, workers_of
from localsgd.comm import Codec
from localsgd.comm.contract import Array, Communicator
from localsgd.outer import OuterOptimizer
from localsgd.schedules import Schedule


class DirectionalAverager(MovesAverager):
    """Merges what workers have moved, v = anchor - params, tensor by tensor:

        v = (Σ w |v| / Σ w) · φ(Σ w φ(v) / Σ w)        φ(x) = x / |x|,  φ(0) = 0

    where a plain mean of M orthogonal moves of length R has the length R / sqrt(M), this has R.
    Where the directions cancel to 0, and for tensors named in ``plain``, it is the weighted mean.

    A round sends what a mean does, and a norm for every tensor. With a codec every worker sends its
    message to every other, of the same host as well, and v is what it decodes to; what a message
    does not have is sent later.

    Attributes:
        plain, codec: as given.
    """

    def __init__(
        self,
        schedule: Schedule,
        comm: Communicator | None = None,
        *,
        plain: Sequence[str] = (),
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            comm: the workers that take part; None means ``localsgd.world()``.
            plain: the parameters that take the weighted mean; embeddings in the paper.
            outer: makes the parameters after a round, with v for its delta; None descends it.
            compress: how each worker's moves go; None sends them as they are.
            guard: as in ``ModelAverager``; it looks before a round.

        Raises:
            TypeError, ValueError: for a codec that cannot do.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> tuple[str, ...]:
            if compress is not None:
                checked_codec(compress)
            return tuple(plain)

        self.plain = agreed_among(
            comm,
            "plain parameters and codecs",
            prepare,
            lambda made: [repr(made), str(compress and compress.name)],
        )
        self.codec = compress
        super().__init__(schedule, comm, "directions", outer=outer, guard=guard)

    def _check(self, arenas: Sequence[Arena]) -> None:
        """
        Raises:
            ValueError: if a parameter of ``plain`` is none of these.
        """
        unknown = set(self.plain).difference(*(arena.names for arena in arenas))
        if unknown:
            raise ValueError(f"plain must name parameters, got {sorted(unknown)} that are none")
        require_carried(self.comm, self.codec, arenas)

    def _beside(self, arena: Arena, anchor: Array) -> dict[str, Array]:
        return {} if self.codec is None else {"unsent": np.zeros_like(anchor)}

    def _merge(
        self,
        index: int,
        arena: Arena,
        kept: Mapping[str, Array],
        group: Communicator,
        weight: float | None,
        label: str,
    ) -> Merged:
        moved = kept["anchor"] - arena.flat
        if self.codec is not None:
            moved += kept["unsent"]
            place = (group.rank, self._ledger.settled[0], index)
            messages = Messages(self.codec, moved, group, weight, label, place)
            # Who is left out keeps what it had: what it has moved is not finite.
            later = {} if self.left_out else {"unsent": messages.unsent}
            return self._merged_messages(arena, messages, group), later
        own = moved.copy()
        norms = _make_directions(self._tensors(arena, moved))
        group.allreduce(moved, "mean", weight=weight, label=label)
        if norms.size:
            group.allreduce(norms, "mean", weight=weight, label=f"norms of {label}")

        def mean() -> Array:
            group.allreduce(own, "mean", weight=weight, label=f"plain {label}")
            return own

        self._lengthen(arena, moved, norms, mean, group)
        return moved, {}

    def _merged_messages(self, arena: Arena, messages: Messages, group: Communicator) -> Array:
        # By their senders, whose norms all take: sums differ by a machine's vectors.
        norms_of_all = group.gather(_norms(self._tensors(arena, messages.own)))
        merged, norms = np.zeros_like(messages.own), np.zeros_like(norms_of_all[0])
        for (share, sent), its in zip(messages, norms_of_all, strict=True):
            for tensor, norm in zip(self._tensors(arena, sent).values(), its, strict=True):
                if norm:
                    tensor /= tensor.dtype.type(norm)
            merged += merged.dtype.type(share) * sent
            norms += share * its

        def mean() -> Array:
            found = np.zeros_like(merged)
            for share, sent in messages:
                found += found.dtype.type(share) * sent
            found /= found.dtype.type(messages.total)
            return found

        merged /= merged.dtype.type(messages.total)
        self._lengthen(arena, merged, norms / messages.total, mean, group)
        return merged

    def _tensors(self, arena: Arena, flat: Array) -> dict[str, Array]:
        """The parts of a buffer that are not plain, by name."""
        views = arena.layout.views(flat)
        return {n: view.reshape(-1) for n, view in views.items() if n not in self.plain}

    def _lengthen(
        self,
        arena: Arena,
        merged: Array,
        norms: Array,
        mean: Callable[[], Array],
        group: Communicator,
    ) -> None:
        """Gives mean directions their lengths, in place; what has cancelled becomes the mean."""
        tensors = self._tensors(arena, merged)
        if not tensors:
            return
        lengths = _norms(tensors)
        group.broadcast(lengths, 0)
        means: Mapping[str, Array] | None = None
        for (name, tensor), norm, length in zip(tensors.items(), norms, lengths, strict=True):
            if length:
                tensor *= tensor.dtype.type(norm / length)
            elif norm:
                means = means or self._tensors(arena, mean())
                tensor[...] = means[name]


def _make_directions(tensors: Mapping[str, Array]) -> Array:
    """Divides every tensor by its norm, in place, and gives the norms."""
    norms = _norms(tensors)
    for tensor, norm in zip(tensors.values(), norms, strict=True):
        if norm:
            tensor /= tensor.dtype.type(norm)
    return norms


def _norms(tensors: Mapping[str, Array]) -> Array:
    """The Euclidean norms, computed in float64, shape ``(tensors,)``."""
    squares = [np.square(tensor, dtype=np.float64).sum() for tensor in tensors.values()]
    return np.sqrt(np.array(squares, np.float64))
