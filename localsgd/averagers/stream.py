"""One fragment's rounds: it leaves, is on its way, and arrives, or is given up.

Where workers may be lost, a round in the background changes nothing that counts before it arrives:
its outer step is taken beside the anchor (``beside``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localsgd.arrays import Arena
from localsgd.averagers.anchor import Anchor, resharded
from localsgd.averagers.beside import Beside
from localsgd.averagers.compressed_rounds import CompressedRounds
from localsgd.averagers.fragment import Fragment
from localsgd.averagers.guard import Watch
from localsgd.averagers.regrouping import regrouped
from localsgd.comm import NotFiniteError, NoWeight
from localsgd.comm.changes import Change
from localsgd.comm.contract import Communicator, Request, Traffic
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates


class Stream:
    """One fragment, its anchor, and its round while there is one.

    Attributes:
        away: whether a round is on its way.
        held: whether the last was held; False where nobody weighed anything.
        samples: what this worker has given to the last by its account; None if nothing.
        traffic: what this worker moved for it.
    """

    def __init__(
        self,
        names: Sequence[str],
        arenas: Sequence[Arena],
        comm: Communicator,
        outer: OuterOptimizer | None,
        compressed: CompressedRounds,
        watch: Watch,
        *,
        resumes: bool,
    ) -> None:
        """Takes the parameters as they are for the anchor. Collective.

        Args:
            names: the parameters of the fragment.
            outer: makes them after a round; None takes their mean, and there is no anchor.
            compressed: compresses its rounds, if there is a codec.
            watch: raises where numbers are not finite.
            resumes: whether a state is about to be loaded.
        """
        self._fragment, self._comm = Fragment(names, arenas, comm), comm
        self._fragment.take(arenas)
        self._anchor = None if outer is None else Anchor(outer, self._fragment.parts, comm)
        self._compressed, self._watch = compressed, watch
        compressed.begin(self._fragment.parts, resumes=resumes)
        self._beside: Beside | None = None
        # Whether the round steps what is beside the anchor.
        self._turns = False
        # What was kept by a codec when a round left that may be given up.
        self._left: Mapping[str, Any] | None = None
        # The shards of the group as it was, until a regrouping is settled.
        self._before: Anchor | Beside | None = None
        self._waiting: Callable[[Communicator], None] | None = None
        self._request: Request | None = None
        self.away, self.held, self.traffic = False, True, Traffic()
        self.samples: int | None = None

    def set_anchor(self, arenas: Sequence[Arena]) -> None:
        """Makes the anchor what the parameters are, equal on all ranks."""
        self._fragment.take(arenas)
        if self._anchor is not None:
            self._anchor.set(self._fragment.parts)
            self._beside = None
        self._compressed.settle(self._fragment.parts, self._comm, 0)

    def leave(
        self,
        arenas: Sequence[Arena],
        outer: OuterOptimizer | None,
        weight: float | None,
        label: str,
        *,
        behind: bool,
        keep_progress: bool,
        may_fail: bool = False,
    ) -> None:
        """Begins a round with the parameters as they are. Collective.

        Args:
            outer: the outer optimizer as it is in this round.
            behind: whether the round goes on in the background, and ``wait`` raises what it does.
            keep_progress: whether what the parameters move from here on is added to the result.
            may_fail: whether a round in the background begins with ``set_off``, and may be given
                up until it arrives.
        """
        self._fragment.take(arenas, keep_progress=keep_progress)
        parts, anchor = self._fragment.parts, self._anchor
        if behind and may_fail:
            self._left = self._compressed.state_dict()
            if anchor is not None and self._beside is None:
                self._beside = self._with_place(anchor)
        beside, self._turns = self._beside, self._beside is not None
        if beside is not None and anchor is not None:
            beside.next.rounds, anchor = anchor.rounds, beside.next
        codecs = self._compressed.codecs(parts, self._comm, 1)
        if self._compressed.wanted:
            self._watch.look(self._comm, parts, weight, label)
        updates = [None if anchor is None else anchor.step(i, outer) for i in range(len(parts))]

        def work(group: Communicator) -> None:
            before = group.traffic
            if beside is not None:
                beside.begin()
            for part, codec, update in zip(parts, codecs, updates, strict=True):
                self._watch.average(group, part, weight, codec=codec, update=update, label=label)
            if beside is not None:
                beside.end()
            self.traffic = group.traffic - before

        self.held = True
        if behind and may_fail:
            self._waiting = work
        elif behind:
            self._request = self._comm.start(work)
        else:
            try:
                work(self._comm)
            except NoWeight:
                self.held = False
        self.away = True

    def _with_place(self, anchor: Anchor) -> Beside:
        """An anchor and a place beside it. Collective."""
        place = Anchor(anchor.outer, self._fragment.parts, self._comm)
        return Beside(anchor, place, self._comm)

    def set_off(self) -> None:
        """Begins a round that waits for it in the background."""
        if self._waiting is not None:
            self._request, self._waiting = self._comm.start(self._waiting), None

    def wait(self) -> None:
        """Returns once the round in the background has ended.

        Raises:
            MismatchError, RankFailure: what it raised, at every call.
            NotFiniteError: what it raised, once; nothing is on its way then.
        """
        self.set_off()
        if self._request is not None:
            try:
                self._request.wait()
            except NoWeight:
                self.held = False
            except NotFiniteError:
                # On every rank, which may go on from what was saved.
                self._request, self.away, self._left = None, False, None
                raise
            self._request = None

    def arrive(self, arenas: Sequence[Arena], mixing: float) -> bool:
        """Brings a fragment that is away back; returns whether there was one, with a round held."""
        if not self.away:
            return False
        self.wait()
        self.away, self._left = False, None
        if self.held:
            self._fragment.give(arenas, mixing)
            if self._turns and self._beside is not None:
                self._anchor = self._beside.turn()
            if self._anchor is not None:
                self._anchor.rounds += 1
            self._compressed.settle(self._fragment.parts, self._comm, 1)
        return self.held

    def give_up(self) -> bool:
        """Makes everything what it was when a round left that may be given up.

        Not collective; nothing runs in the background any more.

        Returns:
            Whether there was one.
        """
        if self._left is None:
            return False
        self._compressed.load_state_dict(self._left)
        self._request = self._waiting = self._left = None
        self.away = False
        return True

    def snapshot(self) -> dict[str, Any]:
        """Copies of what a round held by all may change; waits for nothing."""
        left = self._left
        return {
            "anchor": None if self._anchor is None else self._anchor.state_dict(),
            "version": None if self._beside is None else self._beside.version,
            "left": left,
            "come": self._fragment.state() if self.away and left is None else None,
            "held": self.held,
            "samples": self.samples,
            **(self._compressed.state_dict() if left is None else left),
        }

    def put_back(self, snapshot: Mapping[str, Any]) -> None:
        """Makes everything what it was; nothing runs in the background any more."""
        self._request = self._waiting = None
        version = snapshot["version"]
        if version is None:
            self._beside = None
        if self._anchor is not None:
            self._anchor.load_state_dict(snapshot["anchor"])
            if self._beside is not None:
                self._beside.become(version)
        self._compressed.load_state_dict(snapshot)
        self._left, come = snapshot["left"], snapshot["come"]
        self.held, self.samples = snapshot["held"], snapshot["samples"]
        self._turns, self.away = False, come is not None or self._left is not None
        if come is not None:
            self._fragment.load_state(come)

    def regroup(self, arenas: Sequence[Arena], change: Change, begun: int) -> None:
        """Shares the anchor among those that are in the group now. Collective.

        What is away still has come to all, from a checkpoint, and arrives. Called again before
        ``settle_regrouping``, it goes from the shards as they were.
        """
        comm, parts = self._comm, self._fragment.parts
        if change.grown:
            for part in parts:
                comm.map_again(part.flat)
        if not self.away:
            self._fragment.take(arenas)
        if self._anchor is not None:
            self._before = self._before or self._beside or self._anchor
            before = self._before if comm.rank < len(change.numbers) else None
            made = Anchor(self._anchor.outer, parts, comm)
            regrouped(before, made, parts, comm, change, begun)
            if any(comm.collect(isinstance(before, Beside))):
                self._beside = self._with_place(made)
            self._anchor, self._turns = made, False
        self._compressed.regroup(parts, change)

    def state_for_new(self) -> Any:
        """What has come to all and is to arrive; nothing while a round may be given up."""
        return self._fragment.state() if self.away and self._left is None else None

    def take_over(self, state: Any) -> None:
        """Takes over the ``state_for_new`` of another worker; not collective."""
        self.away = state is not None
        if self.away:
            self._fragment.load_state(state)

    def settle_regrouping(self) -> None:
        """Goes on with the shards as they are."""
        self._before = None
        self._compressed.settle_regrouping()

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of it; waits for a round that is on its way."""
        self.wait()
        anchor = self._anchor
        if self.away and self.held and self._turns and self._beside is not None:
            anchor = self._beside.next
        return {
            "anchor": None if anchor is None else anchor.state_dict(),
            "away": self._fragment.state() if self.away else None,
            "held": self.held,
            **self._compressed.state_dict(),
        }

    def check_state_dict(self, state_dict: Any) -> None:
        """Raises ValueError if ``load_state_dict`` would, and changes nothing."""
        if self._anchor is not None:
            self._anchor.check_state_dict(state_dict["anchor"])
        self._compressed.check_state_dict(state_dict)
        if state_dict["away"] is not None:
            self._fragment.check_state(state_dict["away"])

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes over what ``check_state_dict`` has found right; not collective."""
        self.wait()
        if self._anchor is not None:
            self._anchor.load_state_dict(state_dict["anchor"])
        self._beside, self._turns, self._left = None, False, None
        self._compressed.load_state_dict(state_dict)
        self.away, self.held = state_dict["away"] is not None, bool(state_dict["held"])
        if self.away:
            self._fragment.load_state(state_dict["away"])


def resized(saved: SavedStates, wire: CompressedRounds) -> dict[str, Any]:
    """This rank's state of a fragment that a group of another size or layout has saved. Collective.

    The result of a round that is on its way is known by then, and equal on all ranks.
    """
    own = dict(saved.own)
    if own["anchor"] is not None:
        own["anchor"] = resharded(saved.at("anchor"))
    away = own["away"]
    if away is not None and away["before"] is not None:
        places = range(len(away["before"]))
        before = [saved.at("away", "before", index).mean() for index in places]
        own["away"] = {**away, "before": before}
    own.pop("compression", None)
    return {**own, **wire.resized_state(saved)}
