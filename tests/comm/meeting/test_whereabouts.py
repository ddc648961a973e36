"""Who is late, where each was last seen, and which of all that wait says so."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest

from localsgd.comm import RankFailure, Topology
from localsgd.comm.meeting import PAGE_BYTES, Board, Header, News, Progress, Whereabouts, header
from localsgd.comm.transports import SoloTransport

LABEL = "round after step 8, SGD(lr=1.0)"


class Post(SoloTransport):
    """Carries what is announced between ranks that are not even threads."""

    def __init__(self, rank: int, size: int, boxes: dict[int, list[bytes]]) -> None:
        super().__init__()
        self.rank, self.size, self._boxes = rank, size, boxes

    def announce(self, record: bytes, dest: int) -> None:
        self._boxes[dest].append(record)

    def news(self) -> Sequence[bytes]:
        found, self._boxes[self.rank] = self._boxes[self.rank], []
        return found


class Ranks:
    """The ranks of a layout, moved by hand, with a clock that stands still."""

    def __init__(self, layout: str) -> None:
        topology = Topology.parse(layout, sum(map(int, layout.split("+"))))
        self.size = size = len(topology.host_of)
        self.now = 100.0
        pages = [np.zeros(PAGE_BYTES, np.uint8) for _ in range(size)]
        boxes: dict[int, list[bytes]] = {rank: [] for rank in range(size)}
        self.boards, self.progress, self.at = [], [], list[Whereabouts]()
        for rank in range(size):
            ranks = topology.neighbours(rank)
            own = [pages[r] for r in ranks]
            transport = Post(rank, size, boxes)
            board = Board(own, ranks, [os.getpid()] * len(ranks), rank)
            progress = Progress(dict(zip(ranks, own, strict=True)), rank)
            self.boards.append(board)
            self.progress.append(progress)
            news = News(transport)
            self.at.append(
                Whereabouts(
                    board,
                    news,
                    progress,
                    transport,
                    topology,
                    0,
                    range(size),
                    lambda: self.now,
                )
            )

    def enter(self, sequence: int, ranks: Sequence[int]) -> None:
        """Ranks begin a collective."""
        for rank in ranks:
            packed = Header("allreduce", detail=LABEL).pack(sequence)
            self.boards[rank].moments[0] = self.now
            self.boards[rank].show_label(LABEL, packed[header.DETAIL])
            self.boards[rank].show(packed, sequence)

    def leave(self, sequence: int, ranks: Sequence[int]) -> None:
        for rank in ranks:
            self.boards[rank].moments[1] = self.now
            self.at[rank].traded = sequence


def all_but(ranks: Ranks, *late: int) -> list[int]:
    return [rank for rank in range(ranks.size) if rank not in late]


def rounds(layout: str, *late: int, sequence: int = 4) -> Ranks:
    """Ranks of which all but the late ones have come to a collective, 31 s after the last."""
    ranks = Ranks(layout)
    everyone = all_but(ranks)
    ranks.enter(sequence - 1, everyone)
    ranks.now += 1
    ranks.leave(sequence - 1, everyone)
    ranks.enter(sequence, all_but(ranks, *late))
    ranks.now += 31
    return ranks


def test_a_rank_that_computes_is_named_with_what_it_did_last_and_how_far_it_is() -> None:
    ranks = rounds("2", 1)
    late = ranks.at[0].late([1])
    assert late.ranks == [1]
    assert late.where == 'allreduce "round after step 8" (collective 4)'
    seen = (
        "rank 1 was last seen 31 s ago, as it ended allreduce "
        '"round after step 8" (collective 3), and computes'
    )
    assert late.words == [seen]
    ranks.progress[1].steps[0] = 10
    assert ranks.at[0].late([1]).words == [f"{seen} at step 10"]
    ranks.at[0].show([1])
    ranks.progress[1].steps[0] = 13
    further = f"{seen} at step 13, 3 further than when this wait began"
    assert ranks.at[0].late([1]).words == [further]


def test_a_rank_that_stays_in_a_collective_is_named_with_it() -> None:
    ranks = Ranks("2")
    ranks.enter(1, [0, 1])
    ranks.now += 31
    words = (
        'rank 1 was last seen 31 s ago, as it began allreduce "round after step 8" (collective 1)'
    )
    assert ranks.at[0].late([1]).words == [words]


def test_a_rank_that_has_come_to_no_collective_yet_is_said_to_have_made_no_call() -> None:
    ranks = Ranks("2")
    ranks.enter(1, [0])
    assert ranks.at[0].late([1]).words == ["rank 1 has made no call yet"]


def test_a_label_of_another_collective_is_not_taken_for_that_of_this() -> None:
    ranks = Ranks("2")
    ranks.enter(1, [0, 1])
    ranks.boards[1].show(Header("barrier").pack(2), 2)
    (words,) = ranks.at[0].late([1]).words
    assert "as it began barrier (collective 2)" in words


def test_of_ranks_that_wait_for_each_other_in_turn_the_last_is_late() -> None:
    """Rank 0 waits for 1, and 1 for 2, which computes: rank 1 is to say so."""
    ranks = rounds("3", 2)
    ranks.at[1].show([2])
    assert ranks.at[0].late([1]).ranks == [2]
    assert not ranks.at[0].speaks([1], since=0.0)
    assert ranks.at[1].speaks([2], since=0.0)
    ranks.at[1].show([])
    assert ranks.at[0].late([1]).ranks == [1]


def test_a_rank_that_was_stopped_as_it_waited_waits_no_more() -> None:
    """It would have shown it anew within ten seconds."""
    ranks = rounds("3", 2)
    ranks.at[1].show([2])
    ranks.now += 10
    assert ranks.at[0].late([1]).ranks == [1]


def test_ranks_that_wait_for_each_other_are_all_late() -> None:
    ranks = rounds("2")
    ranks.at[0].show([1])
    ranks.at[1].show([0])
    assert ranks.at[0].late([1]).ranks == [1]
    assert ranks.at[0].late([1]).words[0].endswith("; it waits for rank 0 in turn")
    assert ranks.at[0].speaks([1], since=0.0)


def test_a_rank_that_waits_in_another_group_is_said_to() -> None:
    ranks = rounds("3", 1)
    ranks.progress[1].show(77, [2], ranks.now)
    (words,) = ranks.at[0].late([1]).words
    assert words.endswith(", and waits in another group for rank 2 of the world")


def test_one_rank_of_a_host_speaks_and_another_when_it_has_not_for_a_while() -> None:
    ranks = rounds("4", 1)
    assert [ranks.at[rank].ask([1]) for rank in (0, 2, 3)] == [0.0, 1.0, 1.0]
    begin = 0.0
    assert [ranks.at[rank].speaks([1], begin) for rank in (0, 2, 3)] == [True, False, False]
    assert ranks.at[0].speaks([1], begin)
    since = ranks.now
    ranks.now += 60
    assert [ranks.at[rank].speaks([1], since) for rank in (3, 2, 0)] == [True, False, False]


def test_the_neighbours_of_a_rank_that_does_not_answer_tell_where_it_is() -> None:
    ranks = rounds("2+2", 3)
    ranks.at[1].ask([3])
    ranks.at[2].check([3])
    ranks.at[1].check([3])
    assert ranks.at[1].late([3])[:2] == ranks.at[2].late([3])[:2]


def test_what_was_said_of_one_rank_is_not_said_of_another() -> None:
    ranks = rounds("4", 1)
    assert ranks.at[0].speaks([1], since=0.0)
    assert ranks.at[2].speaks([1, 3], since=0.0)


def test_of_other_hosts_nobody_speaks_where_a_neighbour_of_the_late_rank_has() -> None:
    """Rank 3 is late; rank 2 knows most. Rank 1 asks rank 3, which cannot answer."""
    ranks = rounds("2+2", 3)
    assert ranks.at[2].ask([3]) == 0.0
    assert ranks.at[1].ask([3]) >= 2.0
    assert ranks.at[2].speaks([3], since=0.0)
    ranks.at[1].check([3])
    assert not ranks.at[1].speaks([3], since=0.0)


def test_a_rank_of_another_host_that_waits_answers_for_whom() -> None:
    """Rank 0 takes 2 for late, until that has answered; and it knows of 3 what 2 knows."""
    ranks = rounds("2+2", 3)
    ranks.at[0].ask([2])
    assert ranks.at[0].late([2]).ranks == [2]
    ranks.at[2].check([3])
    ranks.at[0].check([2])
    late, near = ranks.at[0].late([2]), ranks.at[2].late([3])
    assert (late.ranks, late.words) == ([3], near.words)
    assert not ranks.at[0].speaks([2], since=0.0)


def test_an_answer_to_an_earlier_question_is_none() -> None:
    ranks = rounds("1+1+1", 2)
    ranks.at[0].ask([1])
    ranks.at[1].check([2])
    ranks.enter(5, [0])
    ranks.at[0].check([1])
    assert ranks.at[0].late([1]).ranks == [1]


def test_a_rank_that_does_not_answer_is_named_with_when_it_was_last_heard_of() -> None:
    ranks = rounds("1+1", 1)
    ranks.at[0].ask([1])
    ranks.at[0].check([1])
    (words,) = ranks.at[0].late([1]).words
    assert words == (
        "rank 1, on another host, was last heard of 31 s ago, in collective 3, and does not "
        "answer: it computes, or is lost"
    )


def test_a_host_that_is_lost_is_one_thing_to_say() -> None:
    """Ranks 2 and 3 are gone; rank 0 hears from the one, and 1 from the other."""
    ranks = rounds("2+2+1", 2, 3)
    assert ranks.at[0].speaks([2], since=0.0)
    assert "rank 2, on another host with rank 3, was" in ranks.at[0].late([2]).words[0]
    assert not ranks.at[1].speaks([3], since=0.0)
    ranks.at[4].check([2])
    assert not ranks.at[4].speaks([2], since=0.0)


def test_what_a_rank_has_computed_itself_is_noted_once() -> None:
    ranks = Ranks("2")
    ranks.enter(1, [0])
    assert ranks.at[0].computed_s() == 0.0
    ranks.leave(1, [0])
    ranks.now += 70
    ranks.enter(2, [0])
    assert [ranks.at[0].computed_s() for _ in range(2)] == [70.0, 0.0]


def test_a_rank_that_failed_is_not_asked_about() -> None:
    ranks = rounds("2+1", 1)
    ranks.boards[1].fail("KeyError: 'no such batch'")
    with pytest.raises(RankFailure, match="rank 1 failed: KeyError: 'no such batch'"):
        ranks.at[0].check([1])
