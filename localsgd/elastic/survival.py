"""Rounds that are held again by those that are left, when a worker is lost in them.

Before a round everything that it may change is copied. When a worker dies, raises or stays silent,
those that are left put back what was, shrink the group, share out what the lost one owned and hold
the round among themselves. So a round is held by all that are left, or it has changed nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from localsgd.averagers import ModelAverager
from localsgd.comm import RankFailure, RankSilent
from localsgd.comm.changes import Change
from localsgd.comm.contract import Array, Communicator
from localsgd.training import PostLocalSGDOptimizer

T = TypeVar("T")


@runtime_checkable
class Regrouping(Protocol):
    """What depends on who is in the group."""

    def regroup(self) -> None:
        """Goes by the group as it is now. Collective where it says so."""


@dataclass
class _Progress:
    """How far a rank has come, or the farthest that it knows of.

    Attributes:
        held: calls of ``hold`` that all have ended.
        recoveries: recoveries that all have ended.
    """

    held: int = 0
    recoveries: int = 0


class Survival:
    """Lets a training go on without workers that are lost.

        training = DiLoCo(optim.AdamW(params, lr=4e-4), 500)
        survival = Survival(training, sampler)

    The job must be started with ``localsgd run --fault-tolerant``. Costs a copy of the parameters,
    and of what is averaged along, before every round.

    Attributes:
        lost: how many workers were lost so far.
    """

    def __init__(self, training: PostLocalSGDOptimizer, *parts: Regrouping) -> None:
        """Not collective.

        Args:
            training: holds its rounds by this from now on; with an averager of
                ``localsgd.averagers``.
            parts: what else depends on the group, such as a ``ShardSampler``.

        Raises:
            TypeError: for another averager, or a part without ``regroup``.
            ValueError: for an averager that cannot go on when workers are lost.
        """
        if not isinstance(training.averager, ModelAverager):
            raise TypeError(
                f"training must have an averager of localsgd.averagers, got {training.averager!r}"
            )
        for part in parts:
            if not isinstance(part, Regrouping):
                raise TypeError(f"parts must have regroup(), as a ShardSampler has, got {part!r}")
        training.averager.check_regrouping()
        self.lost = 0
        self._training, self._averager, self._parts = training, training.averager, parts
        self._copies: list[Array] = []
        self._own, self._known = _Progress(), _Progress()
        training.survival = self

    def hold(self, work: Callable[[], T]) -> T:
        """What ``work`` gives; done again by those that are left if a worker is lost in it.

        A barrier follows, so that none goes on before all have done it.

        Raises:
            RankFailure: if the job cannot go on without those that are lost.
        """
        while True:
            kept, begun = self._keep(), self._averager.comm.begun
            found: list[T] = []
            try:
                found.append(work())
                self._averager.comm.barrier()
            except RankFailure as failure:
                if not self._recovery(failure, kept, begun, done=bool(found)):
                    continue
            self._own.held += 1
            return found[0]

    def _keep(self) -> dict[str, Any]:
        """Copies of what a round may change."""
        training, kept = self._training, dict[str, Any]()
        flats = self._flats()
        if [copy.size for copy in self._copies] != [flat.size for flat in flats]:
            self._copies = [flat.copy() for flat in flats]
        for copy, flat in zip(self._copies, flats, strict=True):
            copy[...] = flat
        if self._averager.begun:
            kept["averager"] = self._averager.state_dict()
        if training.buffers is not None:
            kept["buffers"] = training.buffers.state_dict()
        if any(entry is not training.buffers for entry in training.along):
            kept["optim"] = training.optim.state_dict()
        return kept

    def _put_back(self, kept: dict[str, Any]) -> None:
        training = self._training
        for copy, flat in zip(self._copies, self._flats(), strict=True):
            flat[...] = copy
        if "averager" in kept:
            self._averager.load_state_dict(kept["averager"])
        if training.buffers is not None:
            training.buffers.load_state_dict(kept["buffers"])
        if "optim" in kept:
            training.optim.load_state_dict(kept["optim"])

    def _flats(self) -> Sequence[Array]:
        arenas, stage = self._training.optim.arenas, self._training.gradients
        found = [arena.flat for arena in arenas]
        return found if stage is None else [*found, *(arena.grad.flat for arena in arenas)]

    def _recovery(
        self, failure: RankFailure, kept: dict[str, Any], begun: int, *, done: bool
    ) -> bool:
        """Goes on with those that are left, however many times it takes.

        Returns:
            Whether what failed was done by all: then somebody was past the barrier behind it, and
            others, who had done it, too, learned of a lost worker there.
        """
        comm, own, known = self._averager.comm, self._own, self._known
        shrunk, is_decided, regrouped = None, False, False
        while True:
            now = comm.shrink(silent=failure.ranks if isinstance(failure, RankSilent) else ())
            shrunk = now if shrunk is None else shrunk.then(now)
            self.lost += len(now.lost)
            try:
                self._ask(comm)
                if not is_decided:
                    # Whoever knows more is here, or is lost and can tell nobody any more.
                    done, is_decided = done and known.held > own.held, True
                    if not done:
                        self._put_back(kept)
                if regrouped and known.recoveries > own.recoveries:
                    # All had ended this recovery; those lost now have changed nothing since.
                    own.recoveries, shrunk, begun = known.recoveries, now, sys.maxsize
                self._regroup(shrunk, begun)
                regrouped = True
                comm.barrier()
            except RankFailure as another:
                failure = another
                continue
            own.recoveries += 1
            if comm.rank == 0:
                self._tell(failure, shrunk)
            return done

    def _ask(self, comm: Communicator) -> None:
        """Learns how far others have come, and what they know of it. Collective."""
        own, known = self._own, self._known
        mine = [max(own.held, known.held), max(own.recoveries, known.recoveries)]
        held, recoveries = zip(*comm.collect(mine), strict=True)
        known.held, known.recoveries = max(held), max(recoveries)

    def _regroup(self, shrunk: Change, begun: int) -> None:
        """Shares out what the lost ones owned, and makes groups anew. Collective."""
        if self._averager.begun:
            self._averager.regroup(self._training.optim.arenas, shrunk, begun)
        if self._training.gradients is not None:
            self._training.gradients.regroup()
        for part in self._parts:
            part.regroup()

    def _tell(self, failure: RankFailure, shrunk: Change) -> None:
        names = ", ".join(str(rank) for rank in shrunk.lost) or "nobody"
        print(
            f"localsgd: lost {names} of {shrunk.before.size} workers in step "
            f"{self._averager.step + 1} ({failure}); {len(shrunk.numbers)} go on",
            file=sys.stderr,
            flush=True,
        )
