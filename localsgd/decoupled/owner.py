"""What an owner of fragments does beside training: it looks who is ready, and merges.

A worker offers one copy of a fragment for each merge that it has taken over, and writes no other
before the next. So copies are read where they lie, and nobody waits.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from weakref import ReferenceType, ref

from localsgd.comm import MismatchError
from localsgd.decoupled.merge import Copy, Merged
from localsgd.decoupled.merge_log import MergeLog, Recorded
from localsgd.decoupled.quorum import Gathering
from localsgd.decoupled.records import Record
from localsgd.decoupled.shelves import BASE, STEP, STEP_NS, STEPS, TAKEN, TOKENS, Shelves

# How often it looks: some times in a step, but so that looking takes a hundredth of a core at most.
_LOOKS_IN_A_STEP, _TIMES_A_LOOK = 4, 100
_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.5e-3, 50e-3


class Owner:
    """One rank's fragments, as their owner.

    Attributes:
        merged: the state of every fragment that it owns, by number.
        merges: how many it has done.
        seconds: of its thread's processor time.
        error: what has ended its thread.
    """

    def __init__(
        self,
        shelves: Shelves,
        merged: Mapping[int, Merged],
        gatherings: Mapping[int, Gathering],
        log: MergeLog,
        recorded: Recorded | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            gatherings: who is ready, by fragment.
            recorded: the run that is done again, if one is.
            clock: seconds.
        """
        self.merged, self._shelves, self._gatherings = merged, shelves, gatherings
        self._log, self._recorded, self._clock = log, recorded, clock
        self.merges, self.seconds = 0, 0.0
        self.error: BaseException | None = None
        self._rounds = dict.fromkeys(merged, 0)
        size = len(shelves.published[0])
        self._given = {index: [0] * size for index in merged}
        self._left_out = {index: [0] * size for index in merged}
        self._last_step = {index: [0] * size for index in merged}
        self._sync_s = dict.fromkeys(merged, 0.0)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        for index in merged:
            self.show(index, 0)

    def advance(self) -> None:
        """Merges every fragment of which it is time."""
        for index in self.merged:
            if self._recorded is None:
                self._look(index)
            else:
                self._repeat(index, self._recorded)

    def merge_all(self, *, ready: bool) -> None:
        """Merges in a flush: each fragment that has its quorum, or else all of them. No grace."""
        for index in self.merged:
            found, gathering = self._ready(index), self._gatherings[index]
            if not ready or gathering.has_quorum(len(found)):
                self._merge(index, self._copies(index, found), in_flush=True)

    def is_done(self) -> bool:
        """Whether nothing is left of what was recorded before a flush."""
        recorded = self._recorded
        return recorded is None or all(recorded.next_merge(i) is None for i in self.merged)

    def show(self, index: int, number: int) -> None:
        """Shows the state of a fragment, which was loaded, as merge ``number``."""
        self._rounds[index] = number
        marks = [*self._given[index], *self._left_out[index]]
        self._shelves.merged[index].write([number, *marks], self.merged[index].anchor)

    def start(self) -> None:
        """Works in a thread of its own, until ``stop`` or until nobody has this owner any more."""
        if self._thread is None and self.merged:
            self._stop.clear()
            args = (ref(self), self._stop)
            self._thread = threading.Thread(
                target=_work, args=args, name="localsgd-owner", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after what it does now."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raises what has ended the thread."""
        if self.error is not None:
            raise self.error

    def nap_s(self, look_s: float) -> float:
        """How long to wait between two looks, each of which takes so long."""
        usual_s = min((self._step_s(index) for index in self.merged), default=_LONGEST_NAP_S)
        least_s = max(_SHORTEST_NAP_S, _TIMES_A_LOOK * look_s)
        return min(max(usual_s / _LOOKS_IN_A_STEP, least_s), _LONGEST_NAP_S)

    def _ready(self, index: int) -> dict[int, list[int]]:
        """The counters of the copies that are there for the next merge, by rank, rising.

        A copy is as it is until that merge: nothing is read twice.
        """
        found, number = dict[int, list[int]](), self._rounds[index]
        for rank, record in enumerate(self._shelves.published[index]):
            if record.word(STEP) and record.word(BASE) == number:
                words = record.words()
                if words is not None and words[STEP] and words[BASE] == number:
                    found[rank] = words
        return found

    def _step_s(self, index: int) -> float:
        """The usual time of a step: the median of the workers'."""
        times = sorted(record.word(STEP_NS) for record in self._shelves.published[index])
        return times[len(times) // 2] * 1e-9

    def _look(self, index: int) -> None:
        found, gathering = self._ready(index), self._gatherings[index]
        step_s = self._step_s(index) if found else 0.0
        if gathering.is_over(len(found), self._clock(), step_s, self._sync_s[index]):
            self._merge(index, self._copies(index, found))

    def _repeat(self, index: int, recorded: Recorded) -> None:
        """Merges as it was recorded, once copies are there and all who took the last have it."""
        planned, ready = recorded.next_merge(index), self._ready(index)
        if planned is None or not planned.steps.keys() <= ready.keys():
            return
        number = self._rounds[index]
        published = self._shelves.published[index]
        if any(published[rank].word(TAKEN) < number for rank in recorded.takers(index, number)):
            return
        copies = self._copies(index, {rank: ready[rank] for rank in sorted(planned.steps)})
        found = {copy.rank: copy.step for copy in copies}
        if found != dict(planned.steps):
            raise MismatchError(
                f"merge {planned.number} of fragment {index} must be as it was recorded, of the "
                f"steps {dict(planned.steps)} by rank, got {found}"
            )
        self._merge(index, copies)
        recorded.merged(index)

    def _copies(self, index: int, ready: Mapping[int, Sequence[int]]) -> list[Copy]:
        published = self._shelves.published[index]
        copies = [self._copy(index, rank, its, published[rank]) for rank, its in ready.items()]
        if len({copy.tokens < 0 for copy in copies if copy.steps}) > 1:
            none = [copy.rank for copy in copies if copy.steps and copy.tokens < 0]
            raise MismatchError(
                f"all workers must record samples, or none, got ranks {none} without"
            )
        # Where nobody counts samples a step is as good as another.
        return [copy if copy.tokens >= 0 else replace(copy, tokens=copy.steps) for copy in copies]

    def _copy(self, index: int, rank: int, words: Sequence[int], record: Record) -> Copy:
        step, before = words[STEP], self._last_step[index][rank]
        if step < before:
            raise ValueError(
                f"steps of rank {rank} must not run backwards, got {step} after {before} in "
                f"fragment {index}"
            )
        return Copy(rank, step, words[TOKENS], words[STEPS], record.arrays)

    def _merge(self, index: int, copies: Sequence[Copy], *, in_flush: bool = False) -> None:
        if not copies:
            return
        begin = self._clock()
        state, gathering, number = self.merged[index], self._gatherings[index], self._rounds[index]
        left_out = state.left_out(copies)
        for rank, why in left_out.items():
            _say(f"rank {rank} is left out of merge {number + 1} of fragment {index}: {why}")
        taken = [copy for copy in copies if copy.rank not in left_out]
        if taken:
            state.take(taken)
        number += 1
        for copy in copies:
            marks = self._left_out if copy.rank in left_out else self._given
            marks[index][copy.rank] = number
            self._last_step[index][copy.rank] = copy.step
        self._rounds[index] = number
        words = [number, *self._given[index], *self._left_out[index]]
        # What it was is written down before anybody can take it over.
        self._log.merged(
            index,
            number,
            copies,
            left_out,
            gathering.grace_s,
            gathering.quorum_s,
            in_flush=in_flush,
        )
        self._shelves.merged[index].write(words, state.anchor)
        gathering.begin()
        self.merges += 1
        self._sync_s[index] = self._clock() - begin


def _work(owner_of: ReferenceType[Owner], stop: threading.Event) -> None:
    nap_s, look_s, begin, before = 0.0, 0.0, time.thread_time(), 0
    while not stop.wait(nap_s):
        owner = owner_of()
        if owner is None:
            return
        try:
            owner.advance()
        except Exception as error:
            owner.error = error
            return
        took_s, begin = time.thread_time() - begin, time.thread_time()
        owner.seconds += took_s
        if owner.merges == before:
            look_s = took_s
        before, nap_s = owner.merges, owner.nap_s(look_s)
        del owner


def _say(text: str) -> None:
    sys.stderr.write(f"localsgd: {text}\n")
    sys.stderr.flush()
