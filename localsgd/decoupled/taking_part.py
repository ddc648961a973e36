"""One worker's part in a decoupled run: what it offers and takes over after each of its steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localsgd.arrays import Arena
from localsgd.averagers import Ledger
from localsgd.checks import caller_level
from localsgd.comm import MismatchError
from localsgd.comm.contract import Communicator
from localsgd.decoupled.merge import Merged
from localsgd.decoupled.merge_log import MergeLog, Recorded
from localsgd.decoupled.offers import Offer, Taken
from localsgd.decoupled.owner import Owner
from localsgd.decoupled.quorum import Gathering
from localsgd.decoupled.run_settings import Settings
from localsgd.decoupled.shelves import ROUND, TAKEN, Shelves
from localsgd.decoupled.timing import AsRecorded, AsTheyCome, OnTime, Timing
from localsgd.outer import OuterOptimizer


@dataclass
class Changes:
    """What came of a step, or of a flush.

    Attributes:
        taken: how many merges were taken over.
        nbytes: what was read for it.
        left_out: whether this worker was left out of one, and began anew.
    """

    taken: int = 0
    nbytes: int = 0
    left_out: bool = False


@dataclass
class Now:
    """A step of one worker, or its flush.

    Attributes:
        arenas, step: the parameters, after that step.
        ledger: the samples recorded since the last merge of each fragment.
        changes: what comes of it.
    """

    arenas: Sequence[Arena]
    step: int
    ledger: Ledger
    changes: Changes = field(default_factory=Changes)


class TakingPart:
    """A worker's offers, its part as an owner, and its lines of the log.

    Attributes:
        offers: of every fragment.
        owner: what it does for the fragments that it owns.
    """

    def __init__(
        self,
        arenas: Sequence[Arena],
        plan: Sequence[Sequence[str]],
        comm: Communicator,
        outer: OuterOptimizer | None,
        settings: Settings,
        words: str,
        log: Path | None,
        replay: Path | None,
    ) -> None:
        """Collective. The parameters as they are, equal on all workers, are the first merges.

        Args:
            plan: the parameters of every fragment.
            words: what the run is, as its log has it.
            log, replay: folders, if there are any.

        Raises:
            FileNotFoundError, ValueError: for what is to be replayed.
        """
        rank, size = comm.rank, comm.size
        self._comm, self._settings = comm, settings
        self._recorded = None if replay is None else Recorded(replay, rank, size, words)
        self._timing: Timing = AsTheyCome()
        if self._recorded is not None:
            self._timing = AsRecorded(self._recorded)
        elif settings.on_time:
            self._timing = OnTime(settings.streaming)
        self._log = MergeLog(log, rank, size, words)
        self.offers = [Offer(names, arenas) for names in plan]
        self._shelves = Shelves(comm, [offer.shapes for offer in self.offers])
        owned = [i for i in range(len(plan)) if self._shelves.owner_of(i) == rank]
        merged = {
            i: Merged(self.offers[i].anchor, self.offers[i].tensors, outer, settings.merging)
            for i in owned
        }
        gatherings = {i: Gathering(settings.quorum, size, settings.streaming.delay) for i in owned}
        self.owner = Owner(self._shelves, merged, gatherings, self._log, self._recorded)
        self._left_at: float | None = None
        self._step_s, self._anew_at = 0.0, 0
        comm.barrier()

    def step(self, arenas: Sequence[Arena], step: int, ledger: Ledger) -> Changes:
        """Takes over what has come, and offers what is due, after a step.

        Raises:
            ValueError: for a step that was counted before the last merge.
        """
        if step <= max(ledger.settled):
            raise ValueError(
                f"steps must not run backwards, got {step} on rank {self._comm.rank}, which was at "
                f"{max(ledger.settled)} at its last merge"
            )
        waits = not isinstance(self._timing, AsTheyCome)
        now = Now(arenas, step, ledger)
        if self._left_at is not None:
            took_s = time.monotonic() - self._left_at
            self._step_s = (self._step_s or took_s) / 2 + took_s / 2
        if not waits:
            self.owner.check()
            self.owner.start()
        streaming, at_once = self._settings.streaming, self._settings.at_once
        if not at_once:
            self._take_all(now)
        for index in streaming.leaving(step):
            self.offers[index].ready = True
        for index, offer in enumerate(self.offers):
            has_work = step > ledger.settled[index] and ledger.samples[index] != 0
            goes = has_work or self._settings.on_time
            if offer.ready and goes and offer.offered < offer.taken:
                self._publish(index, now)
        if waits:
            self.owner.advance()
        if at_once:
            self._take_all(now)
        self._look_for_stale(step)
        self._left_at = time.monotonic()
        return now.changes

    def flush(self, arenas: Sequence[Arena], step: int, ledger: Ledger) -> Changes:
        """Merges what was offered, then a copy of every worker's. Collective."""
        now, comm, owner = Now(arenas, step, ledger), self._comm, self.owner
        if self._recorded is not None:
            comm.until(self._after_advancing(owner.is_done), self._others)
        # Who comes early goes on merging for those that still train.
        comm.barrier()
        owner.stop()
        owner.check()
        comm.barrier()
        owner.merge_all(ready=True)
        comm.barrier()
        self._take_newest(now, last=False)
        for index in range(len(self.offers)):
            self._publish(index, now)
        comm.barrier()
        owner.merge_all(ready=False)
        comm.barrier()
        self._take_newest(now, last=True)
        # Before others go on, and merge again.
        comm.barrier()
        self._log.flushed(step)
        if self._recorded is not None:
            self._recorded.flushed()
        self._left_at = None
        return now.changes

    def state_dict(self) -> dict[str, Any]:
        """The numbers of the last merges, and what this rank owns; after a flush."""
        owned = {str(index): merged.state_dict() for index, merged in self.owner.merged.items()}
        return {"numbers": [offer.taken for offer in self.offers], "owned": owned}

    def load(self, saved: Mapping[str, Any], step: int) -> None:
        """Goes on from a ``state_dict``, with the parameters as they are. Collective.

        Raises:
            ValueError: if it does not fit.
        """
        for index, merged in self.owner.merged.items():
            if str(index) not in saved["owned"]:
                raise ValueError(
                    f"the saved state of rank {self._comm.rank} must have fragment {index}, got "
                    f"{list(saved['owned'])}"
                )
            merged.load_state_dict(saved["owned"][str(index)])
            self.owner.show(index, saved["numbers"][index])
        for offer, number in zip(self.offers, saved["numbers"], strict=True):
            offer.taken, offer.taken_at = number, step
        self._comm.barrier()

    def _take_all(self, now: Now) -> None:
        for index, offer in enumerate(self.offers):
            newest = self._shelves.merged[index].word(ROUND)
            wanted = self._timing.wanted(index, now.step, offer, newest)
            words = None if wanted is None else self._read(index, wanted)
            if words is not None:
                how = self._take(index, words, now)
                self._log.taken(index, words[ROUND], now.step, how)

    def _take_newest(self, now: Now, *, last: bool) -> None:
        """While nobody merges; the last merge of a flush leaves nobody anything of its own."""
        for index, offer in enumerate(self.offers):
            record = self._shelves.merged[index]
            words = record.read(offer.buffers) if record.word(ROUND) > offer.taken else None
            if words is not None:
                self._take(index, words, now, last=last)

    def _read(self, index: int, wanted: int) -> list[int] | None:
        """The counters of a merge, which is in the offer's buffers then; None: not now."""
        record, buffers = self._shelves.merged[index], self.offers[index].buffers
        if isinstance(self._timing, AsTheyCome):
            return record.read(buffers)
        found: list[list[int]] = []

        def has_come() -> bool:
            words = record.read(buffers) if record.word(ROUND) >= wanted else None
            found.extend([] if words is None else [words])
            return bool(found)

        self._comm.until(self._after_advancing(has_come), self._others)
        if found[0][ROUND] != wanted:
            raise MismatchError(
                f"merge {wanted} of fragment {index} must be the last one, got {found[0][ROUND]}"
            )
        return found[0]

    def _after_advancing(self, done: Callable[[], bool]) -> Callable[[], bool]:
        """Does this worker's part as an owner while it waits for ``done``."""

        def advanced() -> bool:
            self.owner.advance()
            return done()

        return advanced

    def _others(self) -> list[int]:
        return [rank for rank in range(self._comm.size) if rank != self._comm.rank]

    def _take(self, index: int, words: Sequence[int], now: Now, *, last: bool = False) -> Taken:
        offer, rank = self.offers[index], self._comm.rank
        how: Taken = "late"
        if self._shelves.given_in(words, rank) == offer.taken + 1:
            how = "merged"
        elif self._shelves.left_out_in(words, rank) == offer.taken + 1:
            how = "left out"
        published = self._shelves.published[index][rank]
        mixing = 0.0 if last else self._settings.mixing
        keeps = how == "merged" and mixing is None
        own = published.arrays if keeps else None
        offer.take(now.arenas, words[ROUND], now.step, how, mixing or 0.0, own)
        published.note(TAKEN, words[ROUND])
        if how != "late":
            seen = now.ledger.samples[index]
            now.ledger.settle(index, now.step)
            if keeps:
                now.ledger.samples[index] = None if seen is None else seen - offer.tokens
                now.ledger.settled[index] = offer.offered_at
        if how == "left out":
            self._begin_anew(index, now)
            now.changes.left_out = True
        now.changes.taken += 1
        now.changes.nbytes += sum(buffer.nbytes for buffer in offer.buffers)
        return how

    def _begin_anew(self, index: int, now: Now) -> None:
        """Goes back to the last merges of all fragments: whatever went wrong is in each.

        Once: copies that were offered before may be left out as well.
        """
        if self.offers[index].offered_at <= self._anew_at:
            return
        self._anew_at = now.step
        for other, offer in enumerate(self.offers):
            if other != index:
                offer.go_back(now.arenas)
                offer.ready = False
                now.ledger.settle(other, now.step)

    def _publish(self, index: int, now: Now) -> None:
        seen, steps = now.ledger.samples[index], now.step - now.ledger.settled[index]
        record, step_ns = self._shelves.published[index][self._comm.rank], int(self._step_s * 1e9)
        tokens = -1 if seen is None else seen
        self.offers[index].publish(now.arenas, record, now.step, tokens, steps, step_ns)

    def _look_for_stale(self, step: int) -> None:
        most = self._settings.stale_after
        for index, offer in enumerate(self.offers):
            if step - offer.taken_at > most and not offer.warned:
                offer.warned = True
                warnings.warn(
                    f"fragment {index} must be merged within {most} steps, got none on rank "
                    f"{self._comm.rank} since step {offer.taken_at}: its owner, rank "
                    f"{self._shelves.owner_of(index)}, or a quorum is late",
                    stacklevel=caller_level(),
                )
