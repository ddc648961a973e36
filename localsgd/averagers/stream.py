"""One fragment's rounds: it leaves, is on its way, and arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localsgd.arrays import Arena
from localsgd.averagers.anchor import Anchor, resharded
from localsgd.averagers.compressed_rounds import CompressedRounds
from localsgd.averagers.fragment import Fragment
from localsgd.averagers.guard import Watch
from localsgd.comm import NotFiniteError, NoWeight
from localsgd.comm.contract import Communicator, Request, Traffic
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates


class Stream:
    """One fragment, its anchor, and its round while there is one.

    Attributes:
        away: whether a round is on its way.
        held: whether the last was held; False where nobody weighed anything.
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
        self._request: Request | None = None
        self.away, self.held, self.traffic = False, True, Traffic()

    def set_anchor(self, arenas: Sequence[Arena]) -> None:
        """Makes the anchor what the parameters are, equal on all ranks."""
        self._fragment.take(arenas)
        if self._anchor is not None:
            self._anchor.set(self._fragment.parts)
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
    ) -> None:
        """Begins a round with the parameters as they are. Collective.

        Args:
            outer: the outer optimizer as it is in this round.
            behind: whether the round goes on in the background, and ``wait`` raises what it does.
            keep_progress: whether what the parameters move from here on is added to the result.
        """
        self._fragment.take(arenas, keep_progress=keep_progress)
        parts, anchor = self._fragment.parts, self._anchor
        codecs = self._compressed.codecs(parts, self._comm, 1)
        if self._compressed.wanted:
            self._watch.look(self._comm, parts, weight, label)
        updates = [None if anchor is None else anchor.step(i, outer) for i in range(len(parts))]

        def work(group: Communicator) -> None:
            before = group.traffic
            for part, codec, update in zip(parts, codecs, updates, strict=True):
                self._watch.average(group, part, weight, codec=codec, update=update, label=label)
            self.traffic = group.traffic - before

        self.held = True
        if behind:
            self._request = self._comm.start(work)
        else:
            try:
                work(self._comm)
            except NoWeight:
                self.held = False
        self.away = True

    def wait(self) -> None:
        """Returns once the round in the background has ended.

        Raises:
            MismatchError, RankFailure: what it raised, at every call.
            NotFiniteError: what it raised, once; nothing is on its way then.
        """
        if self._request is not None:
            try:
                self._request.wait()
            except NoWeight:
                self.held = False
            except NotFiniteError:
                # On every rank, which may go on from what was saved.
                self._request, self.away = None, False
                raise
            self._request = None

    def arrive(self, arenas: Sequence[Arena], mixing: float) -> bool:
        """Brings a fragment that is away back; returns whether there was one, with a round held."""
        if not self.away:
            return False
        self.wait()
        self.away = False
        if self.held:
            self._fragment.give(arenas, mixing)
            if self._anchor is not None:
                self._anchor.rounds += 1
            self._compressed.settle(self._fragment.parts, self._comm, 1)
        return self.held

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of it; waits for a round that is on its way."""
        self.wait()
        return {
            "anchor": None if self._anchor is None else self._anchor.state_dict(),
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
