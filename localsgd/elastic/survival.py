"""Rounds that are held again by those that are left, when a worker is lost in them.

Before a round everything that it may change is copied. When a worker dies, raises or stays silent,
those that are left put back what was, shrink the group, share out what the lost one owned and hold
the round among themselves. So a round is held by all that are left, or it has changed nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from localsgd.checks import checked_count
from localsgd.comm import RankFailure, RankSilent
from localsgd.comm.changes import Change
from localsgd.comm.contract import Communicator, Json
from localsgd.elastic.handover import difference, hand_over
from localsgd.elastic.trained import Copies, Trained, TrainedArenas
from localsgd.training import PostLocalSGDOptimizer

T = TypeVar("T")
# After so many workers that have ended before they joined no more are started.
_MOST_IN_VAIN = 3


@runtime_checkable
class Regrouping(Protocol):
    """What depends on who is in the group."""

    def regroup(self) -> None:
        """Goes by the group as it is now. Collective where it says so."""


@runtime_checkable
class Handing(Protocol):
    """What has a state that a worker takes over when it joins."""

    def state_dict(self) -> dict[str, Any]: ...

    def take_over(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where another worker's stands; not collective."""


@runtime_checkable
class Following(Protocol):
    """What the others ``hold`` behind every step, and so behind that after which a worker joins."""

    def after(self, step: int) -> object: ...


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
        joined: whether this worker was started while the others worked, and has joined them.
    """

    def __init__(self, training: PostLocalSGDOptimizer, *parts: Regrouping) -> None:
        """Not collective. A worker that was started to join others does so here.

        Args:
            training: holds its rounds by this from now on; with an averager of
                ``localsgd.averagers``.
            parts: what else depends on the group, such as a ``ShardSampler``.

        Raises:
            TypeError: for another averager, or a part without ``regroup``.
            ValueError: for an averager that cannot go on when workers are lost.
            MismatchError: in a worker that is to join others, if it is not as they are.
        """
        trained = self._of(training)
        for part in parts:
            if not isinstance(part, Regrouping):
                raise TypeError(f"parts must have regroup(), as a ShardSampler has, got {part!r}")
        trained.averager.be_held()
        comm = trained.averager.comm
        if comm.growable or comm.joining:
            trained.check_growing()
        self.lost = 0
        self.joined, self._wanted = comm.joining, comm.size
        self._summoned = self._joined = 0
        self._has_given_up = False
        self._trained, self._averager, self._parts = trained, trained.averager, parts
        self._copies = Copies(trained)
        self._own, self._known = _Progress(), _Progress()
        trained.be_held_by(self)
        if self.joined:
            self._join()

    def __repr__(self) -> str:
        comm = self._averager.comm
        return f"{type(self).__name__}({comm.size} workers, lost={self.lost}, joined={self.joined})"

    def _of(self, training: Any) -> Trained:
        return TrainedArenas(training)

    def hold(self, work: Callable[[], T]) -> T:
        """What ``work`` gives; done again by those that are left if a worker is lost in it.

        A barrier follows, so that none goes on before all have done it.

        Raises:
            RankFailure: if the job cannot go on without those that are lost.
        """
        while True:
            self._copies.take()
            begun = self._averager.comm.begun
            found: list[T] = []
            try:
                found.append(work())
                self._averager.comm.barrier()
            except RankFailure as failure:
                if not self._change(None, failure, self._copies, begun, done=bool(found)):
                    continue
            self._own.held += 1
            self._averager.set_off()
            return found[0]

    def welcome(self) -> None:
        """Takes in workers that are to join, after a round of all. Collective.

        Raises:
            RankFailure: if the job cannot go on without those that are lost.
        """
        comm = self._averager.comm
        while comm.growable:
            change, failure = None, None
            try:
                change = comm.grow(self._reason_against)
            except RankFailure as error:
                failure = error
            if change is None and failure is None:
                break
            self._change(change, failure, None, sys.maxsize, done=True)
            self._joined += failure is None and comm.rank == 0
        self._summon_missing()

    def grow(self, count: int) -> None:
        """Has so many workers more join, each at the first round when it has started. Collective.

        Raises:
            ValueError: unless the job was started with ``--respawn``.
        """
        if not self._averager.comm.growable:
            raise ValueError("workers can be added to a job with --respawn, got one without")
        self._wanted += checked_count("count", count, at_least=1)
        self._summon_missing()

    def _join(self) -> None:
        """Becomes one of the workers that have started this one, with what they have."""
        self._trained.begin()
        comm, change, failure = self._averager.comm, None, None
        try:
            change = comm.join(self._words())
        except RankFailure as error:
            failure = error
        self._change(change, failure, None, sys.maxsize, done=True)
        # The others look for more.
        self.welcome()
        for part in self._parts:
            if isinstance(part, Following):
                self.hold(partial(part.after, self._averager.step))

    def _summon_missing(self) -> None:
        """On rank 0 starts workers in the place of those that are lost."""
        comm = self._averager.comm
        if comm.rank != 0 or not comm.growable:
            return
        # Those that have ended, and not joined.
        vain = self._summoned - self._joined - comm.summoned
        missing = self._wanted - comm.size - comm.summoned
        if missing > 0 and vain < _MOST_IN_VAIN:
            self._summoned += missing
            comm.summon(missing)
        elif missing > 0 and not self._has_given_up:
            self._has_given_up = True
            print(
                f"localsgd: {vain} workers that were started have ended before they joined; "
                "no more are started",
                file=sys.stderr,
                flush=True,
            )

    def _words(self) -> list[str]:
        """What must be equal on a worker that joins."""
        return [*self._trained.words(), *(f"part {type(part).__name__}" for part in self._parts)]

    def _reason_against(self, offer: Json) -> str:
        mine = self._words()
        return "" if offer == mine else f"it must be as the others, got {difference(mine, offer)}"

    def _state(self) -> dict[str, Any]:
        """What a worker that is new takes over from this one, beside the parameters."""
        own = self._own
        parts = [part.state_dict() if isinstance(part, Handing) else None for part in self._parts]
        return {
            "training": self._trained.state_for_new(),
            "parts": parts,
            "progress": [own.held, own.recoveries, self.lost, self._wanted],
        }

    def _take_over(self, state: dict[str, Any]) -> None:
        own = self._own
        self._trained.take_over(state["training"])
        for part, its in zip(self._parts, state["parts"], strict=True):
            if isinstance(part, Handing):
                part.take_over(its)
        own.held, own.recoveries, self.lost, self._wanted = state["progress"]

    def _change(
        self,
        change: Change | None,
        failure: RankFailure | None,
        copies: Copies | None,
        begun: int,
        *,
        done: bool,
    ) -> bool:
        """Lets everything go by the group as it has become, however many times that takes.

        Args:
            change: how it has, if that is known.
            failure: what it is to be shrunk for before.
            copies: what is put back, unless all have done what failed; None: nothing.
            begun: how many collectives the group had begun before.
            done: whether this rank has done it.

        Returns:
            Whether what failed was done by all: then somebody was past the barrier behind it, and
            others, who had done it, too, learned of a lost worker there.
        """
        comm, own, known = self._averager.comm, self._own, self._known
        is_decided, regrouped, put_back = copies is None, False, sys.maxsize
        while True:
            now = None
            if failure is not None:
                silent = failure.ranks if isinstance(failure, RankSilent) else ()
                now = comm.shrink(silent=silent)
                change = now if change is None else change.then(now, put_back)
            assert change is not None
            try:
                self._ask(comm)
                if not is_decided and copies is not None:
                    # Whoever knows more is here, or is lost and can tell nobody any more.
                    done, is_decided = done and known.held > own.held, True
                    if not done:
                        copies.put_back()
                put_back = comm.begun
                if regrouped and now is not None and known.recoveries > own.recoveries:
                    # All had ended this recovery; those lost now have changed nothing since.
                    self._averager.settle_regrouping()
                    self.lost += len(change.lost)
                    own.recoveries, change, begun = known.recoveries, now, sys.maxsize
                self._regroup(change, begun)
                regrouped = True
                comm.barrier()
            except RankFailure as another:
                failure = another
                continue
            own.recoveries += 1
            self._averager.settle_regrouping()
            self.lost += len(change.lost)
            if comm.rank == 0:
                self._tell(failure, change)
            self._summon_missing()
            return done

    def _ask(self, comm: Communicator) -> None:
        """Learns how far others have come, and what they know of it. Collective."""
        own, known = self._own, self._known
        mine = [max(own.held, known.held), max(own.recoveries, known.recoveries)]
        held, recoveries = zip(*comm.collect(mine), strict=True)
        known.held, known.recoveries = max(held), max(recoveries)

    def _regroup(self, change: Change, begun: int) -> None:
        """Shares out what the lost ones owned, and makes groups anew. Collective."""
        comm, trained = self._averager.comm, self._trained
        if change.grown:
            for array in trained.arrays():
                comm.map_again(array)
        is_new = comm.rank >= len(change.numbers)
        if comm.size > len(change.numbers):
            hand_over(comm, change, trained.arrays(), self._state, self._take_over)
        if self._averager.begun or is_new:
            self._averager.regroup(trained.arenas, change, begun)
        trained.regroup()
        for part in self._parts:
            part.regroup()

    def _tell(self, failure: RankFailure | None, change: Change) -> None:
        size, step = self._averager.comm.size, self._averager.step
        if failure is not None:
            names = ", ".join(str(rank) for rank in change.lost) or "nobody"
            text = f"lost {names} of {change.before.size} workers in step {step + 1} ({failure})"
        else:
            text = f"{size - len(change.numbers)} joined after step {step}"
        print(f"localsgd: {text}; {size} go on", file=sys.stderr, flush=True)
