"""Where the ranks are for which this one waits, and who says so.

On a host the board tells. A rank of another host is asked: one that waits itself answers for whom,
and whoever it waits for is late, not it. So of a chain only the end is named, and only a rank that
waits for that end directly speaks: of those on a host the first, and before those of other hosts a
neighbour of it, who knows most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..contract import Transport
from ..errors import name_ranks
from ..topology import Topology
from ..waiting import Clock, Late
from . import header
from .board import Board, Sighting
from .news import Answer, News
from .progress import Progress

# How long after its neighbours' turn a rank speaks, and those of other hosts one after the other.
_SECOND_S, _ELSEWHERE_S, _HOST_S, _MOST_HOSTS = 1.0, 2.0, 0.25, 24
_STATES = {
    "R": "runs",
    "S": "sleeps",
    "D": "waits for a disk or a file system",
    "T": "is stopped",
    "t": "is stopped by a debugger",
}


class Whereabouts:
    """What one rank of a group knows of the others; a ``Lookout``.

    Attributes:
        traded: the number of the last collective into which all other hosts have come.
    """

    def __init__(
        self,
        board: Board,
        news: News,
        progress: Progress,
        transport: Transport,
        topology: Topology,
        number: int,
        world_ranks: Sequence[int],
        clock: Clock,
    ) -> None:
        """
        Args:
            number: names the group.
            world_ranks: the number of every rank of the group in ``progress``.
        """
        self.rank, self.traded = transport.rank, 0
        self._board, self._news, self._progress = board, news, progress
        self._transport, self._number, self._clock = transport, number, clock
        self._world_ranks = tuple(world_ranks)
        self._hosts, self._host_of = topology.hosts, topology.host_of
        self._elsewhere = [r for r in topology.host_of if r not in board.ranks]
        self._noted = 0.0
        self._others = [r for r in board.ranks if r != self.rank]
        self._steps: dict[int, int] = {}

    def check(self, missing: Sequence[int]) -> None:
        self._board.beat()
        self._board.check(missing)
        if self._elsewhere:
            self._news.check(missing, self._sequence())
            if self._news.unanswered:
                late = self.late(missing)
                known = list(zip(late.ranks, late.words, strict=True))
                self._news.answer(Answer(late.ranks, known))
        self._transport.check(missing)

    def computed_s(self) -> float:
        """Between this call on the group and the last; 0 when it was asked for before."""
        entered, left = self._board.moments
        if not 0 < left < entered or entered == self._noted:
            return 0.0
        self._noted = entered
        return entered - left

    def show(self, missing: Sequence[int]) -> None:
        ranks = [self._world_ranks[rank] for rank in missing]
        self._progress.show(self._number, ranks, self._clock())
        for rank in missing:
            if rank in self._board.ranks:
                self._steps.setdefault(rank, self._step_of(rank))
        if not missing:
            self._steps.clear()

    def ask(self, missing: Sequence[int]) -> float:
        away = [rank for rank in missing if rank not in self._board.ranks]
        # Their neighbours may see where those are that do not answer.
        hosts = {self._host_of[rank] for rank in away}
        self._news.ask(self._sequence(), [rank for host in hosts for rank in self._hosts[host]])
        first = next(rank for rank in self._board.ranks if rank == self.rank or rank not in missing)
        delay_s = 0.0 if self.rank == first else _SECOND_S
        if len(away) == len(missing):
            delay_s += _ELSEWHERE_S + _HOST_S * min(self._host_of[self.rank], _MOST_HOSTS)
        return delay_s

    def late(self, missing: Sequence[int]) -> Late:
        waiting: dict[int, list[int]] = {}
        told = {
            rank: words for answer in self._news.answers.values() for rank, words in answer.words
        }
        ranks, open_ranks = set(), list(missing)
        while open_ranks:
            rank = open_ranks.pop()
            if rank not in waiting and rank not in ranks:
                answer = self._waits_for(rank)
                if answer is None:
                    ranks.add(rank)
                else:
                    waiting[rank] = answer.ranks
                    open_ranks += [other for other in answer.ranks if other != self.rank]
        # Ranks that wait for each other are all late.
        late = sorted(ranks or missing)
        words = [self._words(rank, waiting.get(rank, ()), told.get(rank, "")) for rank in late]
        return Late(late, words, str(self._board.sighting(self.rank)))

    def speaks(self, missing: Sequence[int], since: float) -> bool:
        late = set(self.late(missing).ranks)
        told, self._news.said = self._news.said, set()
        if not late & set(missing):
            return False
        away = late.difference(self._board.ranks)
        if away == late <= told or any(self._has_said(r, late, since) for r in self._others):
            return False
        # A host that is lost as a whole is one thing to say.
        said = sorted(late.union(*(self._hosts[self._host_of[rank]] for rank in away)))
        self._board.say(json.dumps(said), self._clock())
        if any(self._has_said(r, late, since) for r in self._others if r < self.rank):
            return False
        self._news.tell_said(said, self._sequence(), self._elsewhere)
        return True

    def _has_said(self, rank: int, late: set[int], since: float) -> bool:
        text, at = self._board.said(rank)
        try:
            return at > since and late <= set(json.loads(text))
        except ValueError:
            # Too many for the page.
            return at > since

    def _waits_for(self, rank: int) -> Answer | None:
        """For whom a rank waits in this group, if it does and that is known."""
        if rank not in self._board.ranks:
            return self._news.answers.get(rank)
        note = self._progress.note(self._world_ranks[rank], self._clock())
        if note is None or note.group != self._number:
            return None
        return Answer([self._world_ranks.index(number) for number in note.ranks], [])

    def _words(self, rank: int, waits_for: Sequence[int], told: str) -> str:
        """Where a rank was last seen; ``told`` is what its neighbours have said of that."""
        also = f"; it waits for rank {waits_for[0]} in turn" if waits_for else ""
        if rank in self._board.ranks:
            return f"rank {rank} {self._near(rank, self._board.sighting(rank))}{also}"
        if told:
            return told
        others = [r for r in self._hosts[self._host_of[rank]] if r != rank]
        beside = f" with {name_ranks(others)}" if others else ""
        place = f"rank {rank}, on another host{beside}"
        if also:
            return f"{place}{also}"
        if self.traded == self._sequence():
            return f"{place}, has come to this collective and not done its part"
        if self.traded == 0:
            return f"{place}, has sent nothing yet"
        ago = self._ago(self._board.moments[1])
        return (
            f"{place}, was last heard of {ago} ago, in collective {self.traded}, and does not "
            "answer: it computes, or is lost"
        )

    def _near(self, rank: int, seen: Sighting) -> str:
        step, before = self._step_of(rank), self._steps.get(rank, 0)
        note = self._progress.note(self._world_ranks[rank], self._clock())
        doing = ", and computes"
        if note is not None and note.group != self._number:
            doing = f", and waits in another group for rank {note.ranks[0]} of the world"
        if not seen.entered:
            where = "has made no call yet"
        elif seen.left >= seen.entered:
            where = f"was last seen {self._ago(seen.left)} ago, as it ended {seen}{doing}"
        else:
            where = f"was last seen {self._ago(seen.entered)} ago, as it began {seen}"
        if step:
            where += f" at step {step}"
        if 0 < before < step:
            where += f", {step - before} further than when this wait began"
        return f"{where}{_process(seen.process)}"

    def _step_of(self, rank: int) -> int:
        return self._progress.step_of(self._world_ranks[rank])

    def _sequence(self) -> int:
        return header.sequence_of(self._board.sighting(self.rank).packed)

    def _ago(self, moment: float) -> str:
        return f"{max(self._clock() - moment, 0.0):.0f} s"


def _process(number: int) -> str:
    """What the system knows of another process."""
    if number == os.getpid():
        return ""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return f" (process {number} {_STATES.get(state, f'is in state {state}')})"
