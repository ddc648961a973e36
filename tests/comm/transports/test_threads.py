"""Workers that are threads: errors end the waiting of others, and memory is given back."""

from __future__ import annotations

import gc
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

    with pytest.raises(RankFailure, match=r"closed the group|have returned") as caught:
        run_threads(3, body, hosts=hosts, deadline_s=60)
    assert 2 in caught.value.ranks


def test_deadline_names_who_is_missing_and_where_it_was_last_seen() -> None:
    """Rank 1 stays away until rank 0 has given up on it."""
    given_up = threading.Event()

    def body(comm: Communicator) -> str:
        comm.collect(comm.rank)
        if comm.rank == 1:
            given_up.wait(60)
            return ""
        with pytest.raises(RankFailure) as caught:
            comm.barrier()
        given_up.set()
        assert caught.value.ranks == (1,)
        return str(caught.value)

    message = run_threads(2, body, deadline_s=2)[0]
    assert "for rank 1: rank 1 was last seen in collect (collective 1)" in message
    assert "this rank is in collective 2" in message


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
