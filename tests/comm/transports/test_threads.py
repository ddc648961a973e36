"""Workers that are threads: errors end the waiting of others, and memory is given back."""

from __future__ import annotations

import gc
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from localsgd.comm import Communicator, RankFailure, run_threads, solo, world


def test_results_come_in_rank_order() -> None:
    assert run_threads(5, lambda comm, factor: comm.rank * factor, 10) == [0, 10, 20, 30, 40]


def test_world_inside_a_worker_is_its_group() -> None:
    assert run_threads(3, lambda comm: world() is comm) == [True] * 3


@pytest.mark.parametrize("hosts", ["3", "2+1"])
def test_worker_that_raises_ends_the_others_and_its_error_is_raised(hosts: str) -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("no such batch")
        comm.barrier()

    with pytest.raises(KeyError, match="no such batch"):
        run_threads(3, body, hosts=hosts, deadline_s=60)


def test_the_others_are_told_which_worker_raised_what() -> None:
    """Its number is that of the group which waits."""
    said: dict[int, str] = {}
    all_said = threading.Barrier(2, timeout=60)

    def body(comm: Communicator) -> None:
        part = comm.split(None if comm.rank == 0 else 0)
        if comm.rank == 1:
            raise KeyError("no such batch")
        with pytest.raises(RankFailure) as caught:
            (comm if comm.rank == 0 else part).barrier()
        said[comm.rank] = f"{caught.value.ranks} {caught.value}"
        # Who returns has left the group, which would be told as well.
        all_said.wait()

    with pytest.raises(KeyError, match="no such batch"):
        run_threads(3, body, deadline_s=60)
    assert said == {
        0: "(1,) rank 1 failed: KeyError: 'no such batch'",
        2: "(0,) rank 0 failed: KeyError: 'no such batch'",
    }


@pytest.mark.parametrize("hosts", ["3", "2+1"])
def test_error_in_an_update_ends_the_round_on_every_rank(hosts: str) -> None:
    seen: dict[int, str] = {}

    def body(comm: Communicator) -> None:
        def update(part: slice, mean: np.ndarray) -> None:
            if comm.rank == 2:
                raise FloatingPointError("the anchor is not finite")

        try:
            comm.allreduce(comm.allocate(1000, np.float32), "mean", update=update)
        except Exception as error:
            seen[comm.rank] = f"{type(error).__name__}: {error}"
            raise

    with pytest.raises(FloatingPointError, match="the anchor is not finite"):
        run_threads(3, body, hosts=hosts, deadline_s=60)
    assert set(seen) == {0, 1, 2}
    assert "RankFailure" in seen[0]
    assert "the anchor is not finite" in seen[0]


@pytest.mark.parametrize("hosts", ["3", "2+1"])
def test_worker_that_has_returned_is_not_waited_for(hosts: str) -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 2:
            return
        comm.barrier()

    with pytest.raises(RankFailure, match=r"closed the group|rank 2 returned") as caught:
        run_threads(3, body, hosts=hosts, deadline_s=60)
    assert 2 in caught.value.ranks


def test_deadline_names_who_is_missing_and_where_it_was_last_seen() -> None:
    """Rank 1 stays away until all have given up on it; its neighbour tells the other host."""
    given_up = threading.Barrier(4)

    def body(comm: Communicator) -> str:
        comm.collect(comm.rank)
        said = ""
        if comm.rank != 1:
            with pytest.raises(RankFailure) as caught:
                comm.barrier()
            said = str(caught.value)
        given_up.wait(60)
        return said

    said = run_threads(4, body, hosts="2+2", deadline_s=2)
    pattern = (
        r"in barrier \(collective 2\) for rank 1: rank 1 was last seen \d s ago, as it ended "
        r"collect \(collective 1\), and computes"
    )
    assert [bool(re.search(pattern, words)) for words in said] == [True, False, True, True]


class Told:
    """Standard error that knows how often ranks have said that they wait."""

    def __init__(self, times: int) -> None:
        self.text, self.often_enough, self._times = "", threading.Event(), times

    def write(self, text: str) -> None:
        self.text += text
        if self.text.count("has waited") >= self._times:
            self.often_enough.set()

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("hosts", ["3", "2+1"])
def test_who_is_to_wait_for_late_ranks_does_and_one_of_them_says_so(
    monkeypatch: pytest.MonkeyPatch, hosts: str
) -> None:
    """The deadline passes twice before rank 1 comes; rank 0, its neighbour, speaks alone."""
    told = Told(3)
    monkeypatch.setattr(sys, "stderr", told)

    def body(comm: Communicator) -> int:
        comm.barrier()
        if comm.rank == 1:
            told.often_enough.wait(60)
        comm.barrier()
        return comm.rank

    assert run_threads(3, body, hosts=hosts, deadline_s=0.5, on_late="wait") == [0, 1, 2]
    lines = told.text.splitlines()
    starts = {line.partition(" has waited")[0] for line in lines if "has waited" in line}
    assert starts == {"localsgd: rank 0"}, told.text
    assert lines[1].startswith("  rank 1 was last seen")
    assert lines[-1].startswith("localsgd: rank 0 goes on after")


@pytest.mark.parametrize("hosts", ["2", "1+1", "2+1"])
def test_a_rank_that_failed_in_a_round_is_not_taken_to_have_ended_it(hosts: str) -> None:
    """Rank 0 goes on to a barrier, which the others must not take for the one of the round."""

    def body(comm: Communicator) -> list[str]:
        def update(part: slice, mean: np.ndarray) -> None:
            if comm.rank == 0:
                raise FloatingPointError("not finite")

        buffer, said = comm.allocate(100_000, np.float32), []
        for call in (lambda: comm.allreduce(buffer, "mean", update=update), comm.barrier):
            with pytest.raises((FloatingPointError, RankFailure)) as caught:
                call()
            said.append(str(caught.value))
        return said

    first, *others = run_threads(3 if "2+" in hosts else 2, body, hosts=hosts, deadline_s=60)
    assert first == [
        "not finite",
        "this rank takes part no more, since FloatingPointError: not finite",
    ]
    for reason, later in others:
        assert later == f"this rank takes part no more, since {reason}"


@pytest.mark.parametrize("hosts", ["2", "1+1"])
def test_a_rank_that_has_given_up_takes_part_no_more(hosts: str) -> None:
    """Else rank 1, when it comes, would meet rank 0 in two collectives at once."""
    given_up = threading.Event()

    def body(comm: Communicator) -> float:
        buffer = comm.allocate(100_000, np.float32)
        buffer[...] = comm.rank
        if comm.rank == 1:
            given_up.wait(60)
            with pytest.raises(RankFailure, match="rank 0 failed: waited"):
                comm.allreduce(buffer, "mean")
        else:
            with pytest.raises(RankFailure, match="waited"):
                comm.allreduce(buffer, "mean")
            with pytest.raises(RankFailure, match="takes part no more, since waited"):
                comm.allreduce(buffer, "mean")
            given_up.set()
        return float(buffer[0])

    assert run_threads(2, body, hosts=hosts, deadline_s=2)[0] == 0.0


def test_the_steps_of_a_rank_are_the_same_in_all_its_groups() -> None:
    def body(comm: Communicator) -> int:
        part = comm.split(comm.rank % 2)
        part.progress[0] = 7 + comm.rank
        return comm.progress[0]

    assert run_threads(3, body, hosts="2+1") == [7, 8, 9]


def test_work_in_the_background_that_waits_for_later_work_is_told() -> None:
    """It would wait for ever, since the group does one thing at a time."""

    def body(comm: Communicator) -> None:
        request = comm.start(lambda group: group.start(lambda same: same.barrier()).wait())
        with pytest.raises(RuntimeError, match="cannot wait for work that comes after it"):
            request.wait(timeout_s=20)
        comm.barrier()

    run_threads(2, body)


def test_a_group_can_be_closed_in_the_background() -> None:
    def body(comm: Communicator) -> None:
        part = comm.split(0)
        part.start(lambda group: group.close()).wait(timeout_s=20)
        with pytest.raises(ValueError, match="must be open"):
            part.barrier()

    run_threads(2, body)


def test_a_group_of_one_goes_on_after_an_error_in_an_update() -> None:
    comm, buffer = solo(), np.ones(3)
    with pytest.raises(KeyError):
        comm.allreduce(buffer, "mean", update=lambda part, mean: {}["missing"])
    comm.allreduce(buffer, "mean")
    assert buffer.tolist() == [1.0] * 3


@pytest.mark.parametrize("hosts", ["2", "1+1", "1+2", "2+1", "1+1+1"])
def test_failed_rank_is_named_to_all_at_once(hosts: str) -> None:
    """Rank 0 fails inside a round, and does not raise: the others learn why, on any host."""
    failed = threading.Event()

    def body(comm: Communicator) -> str:
        def update(part: slice, mean: np.ndarray) -> None:
            if comm.rank == 0:
                raise FloatingPointError("not finite")

        with pytest.raises((FloatingPointError, RankFailure)) as caught:
            comm.allreduce(comm.allocate(10, np.float32), "mean", update=update)
        if comm.rank == 0:
            failed.wait(60)
        failed.set()
        return str(caught.value)

    first, *others = run_threads(
        2 if hosts in ("2", "1+1") else 3, body, hosts=hosts, deadline_s=60
    )
    assert first == "not finite"
    for said in others:
        assert said.endswith("rank 0 failed: FloatingPointError: not finite")


@pytest.mark.parametrize("hosts", ["2", "1+1", "1+2", "2+1", "1+1+1"])
def test_a_rank_that_has_closed_the_group_is_not_waited_for(hosts: str) -> None:
    """Rank 0 closes it after the round, and stays: nobody misses it there, and all do later."""
    told = threading.Barrier(2 if hosts in ("2", "1+1") else 3)

    def body(comm: Communicator) -> list[float]:
        buffer = np.full(3, float(comm.rank))
        comm.allreduce(buffer, "max")
        if comm.rank == 0:
            comm.close()
        else:
            with pytest.raises(RankFailure, match="rank 0 has closed the group or ended"):
                comm.barrier()
        told.wait(60)
        return buffer.tolist()

    size = told.parties
    assert run_threads(size, body, hosts=hosts, deadline_s=50) == [[size - 1.0] * 3] * size


def test_memory_that_the_host_does_not_have_is_an_error_on_every_rank() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(MemoryError, match="must fit into the memory of the host"):
            comm.allocate(2**50, np.float32)
        comm.barrier()

    for hosts in ("3", "2+1", "1+1+1"):
        run_threads(3, body, hosts=hosts)


def mapped() -> int:
    """How many blocks this process maps."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:localsgd")


def test_memory_is_given_back_when_the_workers_are_done() -> None:
    before = mapped()
    run_threads(3, lambda comm: comm.allocate(100_000, np.float64).sum())
    # Fewer, if a thread of an earlier group has ended meanwhile.
    assert mapped() <= before


def test_memory_is_given_back_when_all_workers_have_dropped_it() -> None:
    def body(comm: Communicator) -> None:
        def count() -> int:
            comm.barrier()
            found = mapped()
            comm.barrier()
            return found

        before = count()
        for _ in range(3):
            buffer = comm.allocate(100_000, np.float64)
            comm.allreduce(buffer, "sum")
            del buffer
            assert count() <= before

    run_threads(3, body)


@pytest.mark.long
@pytest.mark.parametrize("hosts", ["2", "1+1"])
def test_buffers_longer_than_two_to_the_31_bytes(hosts: str) -> None:
    count = 2**31 + 7

    def body(comm: Communicator) -> None:
        buffer = comm.allocate(count, np.uint8)
        marks = [0, 2**30, 2**31 - 1, 2**31, count - 1]
        buffer[marks] = [comm.rank + 3 * i for i in range(5)]
        comm.allreduce(buffer, "max")
        assert buffer[marks].tolist() == [comm.size - 1 + 3 * i for i in range(5)]
        assert np.count_nonzero(buffer) == 5

    run_threads(2, body, hosts=hosts)


def test_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 1 worker, got 0"):
        run_threads(0, lambda comm: None)
