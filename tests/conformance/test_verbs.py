"""Every verb that is not a reduction, and what each of them counts."""

from __future__ import annotations

import numpy as np
import pytest

from backends import Workers
from localsgd.comm import NON_MEMBER, Communicator, MismatchError
from oracle import every, same_bits, some_values

pytestmark = pytest.mark.every_layout


def test_allocated_memory_is_zeroed_and_has_the_asked_shape(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        for count in (0, 1, 5000):
            buffer = comm.allocate(count, np.float64)
            assert buffer.shape == (count,)
            assert not buffer.any()
            comm.barrier()
            buffer[...] = comm.rank + 1

    workers.run(body)


def test_neighbours_memory_begins_at_different_places_of_a_page(workers: Workers) -> None:
    """Each on a cache line of its own, so that few share a set of the cache."""

    def body(comm: Communicator) -> None:
        begin = comm.allocate(1 << 20, np.uint8).ctypes.data
        assert begin % 8 == 0
        begins = comm.collect(begin % 4096)
        for ranks in comm.topology.hosts:
            assert len({begins[rank] // 64 for rank in ranks}) == len(ranks)

    workers.run(body)


def test_broadcast_gives_the_roots_bits_nan_payloads_included(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        for root in range(comm.size):
            bits = np.arange(1000, dtype=np.uint32) + np.uint32(0x7FC00000 + 5000 * comm.rank)
            for buffer in (bits.view(np.float32), comm.allocate(1000, np.float32)):
                buffer[...] = bits.view(np.float32)
                expected = np.arange(1000, dtype=np.uint32) + np.uint32(0x7FC00000 + 5000 * root)
                comm.broadcast(buffer, root)
                assert buffer.view(np.uint32).tolist() == expected.tolist()
            whole = np.full(3, comm.rank, np.int64)
            comm.broadcast(whole, root)
            assert whole.tolist() == [root] * 3

    workers.run(body)


def test_gather_takes_arrays_of_any_length_and_dtype(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        mine = np.full(comm.rank * 3, comm.rank, np.float32 if comm.rank % 2 else np.int16)
        for rank, array in enumerate(comm.gather(mine)):
            assert array.dtype == (np.float32 if rank % 2 else np.int16)
            assert array.tolist() == [rank] * (rank * 3)

    workers.run(body)


def test_collect_gives_every_ranks_value_in_order(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        values = comm.collect({"rank": comm.rank, "long": "ä" * 70_000, "nothing": None})
        assert [value["rank"] for value in values] == list(range(comm.size))
        assert {value["long"] for value in values} == {"ä" * 70_000}

    workers.run(body)


def test_agree_names_the_first_difference_and_the_ranks(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        comm.agree({"lr": 0.1, "betas": [0.9, 0.99]}, "hyperparameters")
        mine = {"lr": 0.1, "betas": [0.9, 0.99 if comm.rank != comm.size - 1 else 0.95]}
        if comm.size == 1:
            comm.agree(mine, "hyperparameters")
            return
        with pytest.raises(MismatchError) as caught:
            comm.agree(mine, "hyperparameters")
        message = str(caught.value)
        assert "hyperparameters['betas'][1] must be equal on all ranks" in message
        assert f"rank {comm.size - 1}: 0.95" in message

    workers.run(body)


def test_sendrecv_passes_buffers_round_a_ring(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        send, received = np.full(70_000, comm.rank, np.float32), np.empty(70_000, np.float32)
        comm.sendrecv(send, received, (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size)
        assert received.tolist() == [(comm.rank - 1) % comm.size] * 70_000

    workers.run(body)


def test_exchange_goes_to_and_from_many_at_once(workers: Workers) -> None:
    """Rank r sends its number to all that are larger, in a buffer of r + 1 thousand."""

    def body(comm: Communicator) -> None:
        before = comm.traffic
        mine = np.full(1000 * (comm.rank + 1), comm.rank, np.float32)
        larger, smaller = range(comm.rank + 1, comm.size), range(comm.rank)
        places = {peer: np.empty(1000 * (peer + 1), np.float32) for peer in smaller}
        comm.exchange(dict.fromkeys(larger, mine), places)
        assert all(set(place.tolist()) == {peer} for peer, place in places.items())
        moved = comm.traffic - before
        assert moved.sent == len(larger) * mine.nbytes
        assert moved.received == sum(place.nbytes for place in places.values())
        with pytest.raises(ValueError, match="sends must name other ranks than this one"):
            comm.exchange({comm.rank: mine}, {})
        comm.barrier()

    workers.run(body)


def test_messages_of_another_length_are_an_error_where_they_come(workers: Workers) -> None:
    """A byte too few and one too many, each to oneself where there is nobody else."""

    def body(comm: Communicator) -> None:
        source = (comm.rank - 1) % comm.size
        for count in (9, 11):
            with pytest.raises(
                MismatchError, match=rf"message from rank {source} must have 10 bytes, got"
            ):
                comm.sendrecv(
                    np.ones(count, np.uint8),
                    np.zeros(10, np.uint8),
                    (comm.rank + 1) % comm.size,
                    source,
                )
        comm.barrier()

    workers.run(body)


def test_counts_and_colours_may_be_numpys(workers: Workers) -> None:
    """Bytes of the former exceed a narrow integer, though their number does not."""

    def body(comm: Communicator) -> None:
        assert comm.allocate(np.int8(100), np.float32).size == 100  # type: ignore[arg-type]
        part = comm.split(np.arange(comm.size)[comm.rank] % 2)
        assert part.size == len(range(comm.rank % 2, comm.size, 2))

    workers.run(body)


def test_colours_may_be_of_any_size(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        part = comm.split(2**70 + comm.rank % 2)
        assert part.size == len(range(comm.rank % 2, comm.size, 2))

    workers.run(body)


def test_background_work_ends_before_later_calls_and_gives_the_same_bits(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        first, second = comm.allocate(50_000, np.float32), comm.allocate(50_000, np.float32)
        first[...] = second[...] = some_values(comm.rank, 50_000, np.float32)
        request = comm.start(lambda group: group.allreduce(first, "mean"))
        again = comm.start(lambda group: group.allreduce(first, "mean"))
        comm.allreduce(second, "mean")
        assert request.done()
        assert again.done()
        request.wait()
        again.wait(timeout_s=0)
        comm.allreduce(second, "mean")
        assert same_bits(first, second)

    workers.run(body)


def test_background_error_is_raised_by_wait(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        request = comm.start(lambda group: group.allreduce(np.zeros(3, int), "mean"))
        with pytest.raises(TypeError, match="the mean needs a floating-point buffer"):
            request.wait(timeout_s=20)
        comm.barrier()

    workers.run(body)


def test_split_groups_reduce_their_parents_memory_in_place(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        buffer = comm.allocate(999, np.float32)
        buffer[...] = some_values(comm.rank, 999, np.float32)
        mine, own = buffer.copy(), buffer.copy()
        part = comm.split(comm.rank % 2)
        assert part.size == len([r for r in range(comm.size) if r % 2 == comm.rank % 2])
        part.allreduce(buffer, "mean")
        part.allreduce(own, "mean")
        assert same_bits(buffer, own)
        assert same_bits(buffer, mine) == (part.size == 1)
        comm.allreduce(buffer, "mean")
        assert len(set(comm.collect(buffer.tobytes().hex()))) == 1

    workers.run(body)


def test_groups_may_be_more_than_mpi_has_communicators(workers: Workers) -> None:
    """MPICH has 2,048. Two processes do, since each group is one of theirs."""
    number = 2100 if (workers.backend, workers.size) == ("processes", 2) else 3

    def body(comm: Communicator) -> None:
        for _ in range(number):
            part = comm.split(comm.rank)
            part.close()
        comm.barrier()

    workers.run(body)


def test_rank_without_a_colour_belongs_to_no_group(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        part = comm.split(None if comm.rank == 0 else 7)
        if comm.rank == 0:
            assert part is NON_MEMBER
            with pytest.raises(ValueError, match="not a member"):
                part.barrier()
        else:
            assert (part.rank, part.size) == (comm.rank - 1, comm.size - 1)
            assert part.collect(comm.rank) == list(range(1, comm.size))

    workers.run(body)


def test_closed_group_refuses_every_verb(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        part = comm.split(0)
        part.barrier()
        part.close()
        part.close()
        buffer = np.zeros(3, np.float32)
        for call in (
            part.barrier,
            lambda: part.allreduce(buffer, "mean"),
            lambda: part.broadcast(buffer, 0),
            lambda: part.collect(1),
            lambda: part.split(0),
            lambda: part.start(lambda group: group.barrier()),
        ):
            with pytest.raises(ValueError, match="must be open, got one that was closed"):
                call()
        comm.barrier()

    workers.run(body)


def test_traffic_equals_the_closed_form(workers: Workers) -> None:
    """With N bytes, M hosts and the host's L ranks, all ranks of a host together

    read and write (L - 1) N bytes of neighbours' memory each, and send and receive
    2 N (M - 1) / M bytes each.
    """

    def body(comm: Communicator) -> None:
        count = 12 * 1024
        buffer = comm.allocate(count, np.float32)
        before = comm.traffic
        comm.allreduce(buffer, "mean")
        moved = comm.traffic - before
        nbytes, hosts = buffer.nbytes, len(comm.topology.hosts)
        rows = comm.collect([moved.host_read, moved.host_written, moved.sent, moved.received])
        for ranks in comm.topology.hosts:
            totals = np.sum([rows[rank] for rank in ranks], axis=0).tolist()
            within, between = (len(ranks) - 1) * nbytes, 2 * nbytes * (hosts - 1) // hosts
            assert totals == [within, within, between, between]
        assert moved.calls == 1
        assert moved.seconds > 0

    workers.run(body)


def test_few_numbers_go_to_every_rank_of_another_host_once(workers: Workers) -> None:
    """With N bytes and the host's L ranks of R, all ranks of a host together

    send N bytes to each of the R - L others, receive those of every other host L times, and read
    what each of the L has shown to the L - 1 others.
    """

    def body(comm: Communicator) -> None:
        buffer = comm.allocate(1000, np.float32)
        before = comm.traffic
        comm.allreduce(buffer, "mean")
        moved = comm.traffic - before
        nbytes, hosts = buffer.nbytes, len(comm.topology.hosts)
        rows = comm.collect([moved.host_read, moved.host_written, moved.sent, moved.received])
        for ranks in comm.topology.hosts:
            here = len(ranks)
            counts = [here * (here - 1), 0, comm.size - here, here * (hosts - 1)]
            totals = np.sum([rows[rank] for rank in ranks], axis=0).tolist()
            assert totals == [nbytes * count for count in counts]

    workers.run(body)


def test_gathered_bytes_are_counted(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        before = comm.traffic
        every(comm, np.zeros(10, np.float64))
        moved = comm.traffic - before
        assert moved.sent == moved.received == 80 * (comm.size - 1)

    workers.run(body)
