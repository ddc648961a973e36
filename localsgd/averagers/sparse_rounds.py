"""Rounds of the few largest moves, each the mean over the workers that sent it.

Source: SparseLoCo (arXiv 2508.15706); the mean over senders is DeMo's (arXiv 2411.19870). Values go
as ``codec`` writes them: the paper's in 2 bits, its first release's by a table of 256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.averager import Kind, ModelAverager
from localsgd.averagers.companion import Companion, taking_part
from localsgd.averagers.kept import Kept
from localsgd.checks import agreed_among, checked_number, workers_of
from localsgd.comm import NON_MEMBER, Codec, NoWeight
from localsgd.comm.codecs import check, keyed
from localsgd.comm.contract import Array, Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.schedules import Schedule


class SparseAverager(ModelAverager):
    """Every worker keeps what it has not sent, e, and all move the anchor by what they sent:

        e = decay · e + anchor - params        q = C(e)        e = e - q
        params = anchor = anchor - lr · (Σ w q / Σ w over the workers whose q is not 0)

    number by number; one that nobody sent stays. What stays unsent takes the place of an outer
    momentum. A worker keeps two arrays of the model's size, and sends its message to every other.

    Attributes:
        codec, lr, decay: as given.
    """

    def __init__(
        self,
        schedule: Schedule,
        codec: Codec,
        comm: Communicator | None = None,
        *,
        lr: float = 1.0,
        decay: float = 0.95,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due; every 30 steps in the paper.
            codec: of ``localsgd.codecs``; in the paper 1 to 3 % in 2 bits, which are
                ``TopK(64, 4096, values=TwoBit())``.
            comm: the workers that take part; None means ``localsgd.world()``.
            lr: the outer learning rate, at least 0.
            decay: of what was not sent, in [0, 1].

        Raises:
            TypeError, ValueError: for a number out of its range, or what is no codec.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> tuple[float, float]:
            if not isinstance(codec, Codec):
                raise TypeError(f"codec must be one of localsgd.codecs, got {codec!r}")
            if checked_number("decay", decay) > 1:
                raise ValueError(f"decay must be at most 1, got {decay}")
            return checked_number("lr", lr), float(decay)

        self.lr, self.decay = agreed_among(
            comm, "codecs and rates", prepare, lambda made: [codec.name, *map(repr, made)]
        )
        self.codec = codec
        super().__init__(schedule, comm)
        self._kept = Kept("sparse")

    @property
    def begun(self) -> bool:
        """Whether there is an anchor."""
        return self._kept.begun

    def begin(self, params: Arenas) -> None:
        """Takes the parameters, equal on all workers, for the anchor, or what was loaded.

        Raises:
            TypeError, ValueError, MismatchError: if the codec cannot carry them. Collective.
        """
        if self.comm is NON_MEMBER:
            return
        arenas = as_arenas(params)

        def prepare() -> None:
            for arena in arenas:
                check(self.codec, work_dtype(arena.dtype), arena.flat.size)

        agreed_among(self.comm, "codecs", prepare, lambda _: [])
        wides = [arena.flat.astype(work_dtype(arena.dtype)) for arena in arenas]
        self._kept.begin([{"anchor": wide, "unsent": np.zeros_like(wide)} for wide in wides])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._kept.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept.check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        self._kept.load_state_dict(state_dict)

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: Kind,
        step: int,
    ) -> bool:
        self._kept.require_begun()
        if step <= self._outer.together:
            held = super()._round(arenas, group, along, kind, step)
            for kept, arena in zip(self._kept.arrays, arenas, strict=True):
                kept["anchor"][...] = arena.flat
            return held
        along = taking_part(along, kind, step)
        before, weight = group.traffic, self._weight(group, step)
        words = [f"{kind} after step {step}", *(entry.words for entry in along)]
        group.agree(", ".join(words), "rounds")
        weights = self._weights(group, weight)
        if weights is None:
            return False
        for companion in along:
            companion.ready(group, weight)
        unsent = []
        for index, (arena, kept) in enumerate(zip(arenas, self._kept.arrays, strict=True)):
            unsent.append(self._send(index, arena, kept, group, weights))
        for arena, kept, (rest, moved) in zip(arenas, self._kept.arrays, unsent, strict=True):
            kept["anchor"] -= kept["anchor"].dtype.type(self.lr) * moved
            kept["unsent"][...] = rest
            arena.flat[...] = kept["anchor"]
        for companion in along:
            companion.join(group, weight)
        self._decide(group, kind, step)
        self._ledger.settle(0, step)
        self.rounds += 1
        self.traffic += group.traffic - before
        return True

    def _weights(self, group: Communicator, weight: float | None) -> list[float] | None:
        """What every worker weighs; None if nobody weighs anything, and that may be."""
        found = group.collect(weight)
        if any((entry is None) != (weight is None) for entry in found):
            raise ValueError(
                f"samples must be recorded on all workers or on none, got weights {found}"
            )
        weights = [1.0 if entry is None else float(entry) for entry in found]
        if any(weights):
            return weights
        if self._may_be_without_weight(group):
            return None
        raise NoWeight("some worker must weigh something, got a weight of 0 on every rank")

    def _send(
        self,
        index: int,
        arena: Arena,
        kept: Mapping[str, Array],
        group: Communicator,
        weights: Sequence[float],
    ) -> tuple[Array, Array]:
        """What this worker has not sent afterwards, and how far the anchor moves."""
        anchor = kept["anchor"]
        wanted = kept["unsent"] * anchor.dtype.type(self.decay)
        wanted += anchor - arena.flat
        words = repr((group.rank, self._ledger.settled[0], index)).encode()
        codec = keyed(self.codec, int.from_bytes(blake2b(words, digest_size=8).digest(), "little"))
        message = np.empty(codec.encoded_bytes(wanted.size), np.uint8)
        gives = weights[group.rank] > 0
        codec.encode(wanted if gives else np.zeros_like(wanted), message)
        total, of_senders = np.zeros_like(anchor), np.zeros_like(anchor)
        sent = np.empty_like(anchor)
        for rank, theirs in enumerate(group.gather(message)):
            codec.decode(theirs, sent)
            if rank == group.rank:
                wanted -= sent
            number = anchor.dtype.type(weights[rank])
            total += number * sent
            of_senders += number * (sent != 0)
        np.divide(total, of_senders, out=total, where=of_senders != 0)
        return wanted, total
