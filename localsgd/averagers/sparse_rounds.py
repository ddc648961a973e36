"""Rounds of the few largest moves, each the mean over the workers that sent it.

Source: SparseLoCo (arXiv 2508.15706); the mean over senders is DeMo's (arXiv 2411.19870). Values go
as ``codec`` writes them: the paper's in 2 bits, its first release's by a table of 256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from localsgd.arrays import Arena
from localsgd.averagers.agreeing import checked_codec, require_carried
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.messages import Messages
from localsgd.averagers.moves import Merged, MovesAverager
from localsgd.checks import agreed_among, checked_number, workers_of
from localsgd.comm import Codec
from localsgd.comm.contract import Array, Communicator
from localsgd.outer import OuterOptimizer
from localsgd.schedules import Schedule


class SparseAverager(MovesAverager):
    """Every worker keeps what it has not sent, e, and all move the anchor by what they sent:

        e = decay · e + anchor - params        q = C(e)        e = e - q
        params = anchor = anchor - lr · (Σ w q / Σ w over the workers whose q is not 0)

    number by number; one that nobody sent stays. What stays unsent takes the place of an outer
    momentum in the paper; an outer optimizer takes the mean over senders for its delta. A worker
    keeps two arrays of the model's size, and sends its message to every other.

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
        outer: OuterOptimizer | None = None,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due; every 30 steps in the paper.
            codec: of ``localsgd.codecs``; in the paper 1 to 3 % in 2 bits, which are
                ``TopK(64, 4096, values=TwoBit())``.
            comm: the workers that take part; None means ``localsgd.world()``.
            lr: the outer learning rate, at least 0; 1 where ``outer`` has its own.
            decay: of what was not sent, in [0, 1].
            outer: makes the parameters after a round; None goes ``lr`` of the way.
            guard: as in ``ModelAverager``; it looks before a round.

        Raises:
            TypeError, ValueError: for a number out of its range, or a codec that cannot do.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> tuple[float, float]:
            checked_codec(codec)
            if checked_number("decay", decay) > 1:
                raise ValueError(f"decay must be at most 1, got {decay}")
            if checked_number("lr", lr) != 1 and outer is not None:
                raise ValueError(f"lr must be 1 with an outer optimizer, which has one, got {lr}")
            return float(lr), float(decay)

        self.lr, self.decay = agreed_among(
            comm, "codecs and rates", prepare, lambda made: [codec.name, *map(repr, made)]
        )
        self.codec = codec
        super().__init__(schedule, comm, "sparse", outer=outer, guard=guard)

    def _check(self, arenas: Sequence[Arena]) -> None:
        require_carried(self.comm, self.codec, arenas)

    def _beside(self, arena: Arena, anchor: Array) -> dict[str, Array]:
        return {"unsent": np.zeros_like(anchor)}

    def _merge(
        self,
        index: int,
        arena: Arena,
        kept: Mapping[str, Array],
        group: Communicator,
        weight: float | None,
        label: str,
    ) -> Merged:
        anchor = kept["anchor"]
        wanted = kept["unsent"] * anchor.dtype.type(self.decay)
        wanted += anchor - arena.flat
        place = (group.rank, self._ledger.settled[0], index)
        messages = Messages(self.codec, wanted, group, weight, label, place)
        total, of_senders = np.zeros_like(anchor), np.zeros_like(anchor)
        for share, sent in messages:
            number = anchor.dtype.type(share)
            total += number * sent
            of_senders += number * (sent != 0)
        np.divide(total, of_senders, out=total, where=of_senders != 0)
        total *= anchor.dtype.type(self.lr)
        # Who is left out keeps what it had: what it has moved is not finite.
        return total, {} if self.left_out else {"unsent": messages.unsent}
