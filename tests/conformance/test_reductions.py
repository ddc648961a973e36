"""Reductions give the bits of the contract's formulas, on every backend, size and layout."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from backends import Workers
from localsgd.comm import BFLOAT16, Communicator
from oracle import (
    Array,
    every,
    same_bits,
    some_values,
    two_level_mean,
    two_level_sum,
)

pytestmark = pytest.mark.every_layout

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
# Empty; fewer than ranks; not divisible; large: several chunks a rank, and compiled loops.
LENGTHS = [0, 1, 5, 1001, 300_003]


def filled(comm: Communicator, count: int, dtype: Any, memory: str, seed: int = 0) -> Array:
    """This rank's values, in shared or in private memory."""
    values = some_values(comm.rank, count, dtype, seed=seed)
    if memory == "private":
        return values
    buffer = comm.allocate(count, dtype)
    buffer[...] = values
    return buffer


@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_mean_is_the_shifted_mean_at_two_levels(workers: Workers, dtype: Any, memory: str) -> None:
    def body(comm: Communicator) -> None:
        for count in LENGTHS:
            buffer = filled(comm, count, dtype, memory)
            rows = every(comm, buffer)
            comm.allreduce(buffer, "mean")
            digest = hashlib.sha256(buffer.tobytes()).hexdigest()
            assert comm.collect(digest) == [digest] * comm.size, f"{count} elements"
            # All hold the same, so one of them compares: the formula costs more than the mean.
            if comm.rank == 0:
                expected = two_level_mean(rows, [1.0] * comm.size, comm.topology)
                assert same_bits(buffer, expected), f"{count} elements"

    workers.run(body)


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_weighted_mean_weighs_every_rank_by_its_own_number(workers: Workers, memory: str) -> None:
    def body(comm: Communicator) -> None:
        weights = [0.5 + 1.25 * rank for rank in range(comm.size)]
        buffer = filled(comm, 1001, np.float32, memory)
        expected = two_level_mean(every(comm, buffer), weights, comm.topology)
        comm.allreduce(buffer, "mean", weight=weights[comm.rank])
        assert same_bits(buffer, expected)

    workers.run(body)


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_rank_of_weight_zero_is_not_read_and_gets_the_result(workers: Workers, memory: str) -> None:
    """All but the last rank weigh 0 and hold NaN: the mean is the last rank's values."""

    def body(comm: Communicator) -> None:
        last = comm.rank == comm.size - 1
        buffer = filled(comm, 1001, np.float32, memory)
        wanted = every(comm, buffer)[-1]
        if not last:
            buffer[...] = np.nan
        comm.allreduce(buffer, "mean", weight=2.0 if last else 0.0)
        assert same_bits(buffer, wanted)

    workers.run(body)


def test_equal_weights_are_no_weights(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        plain = filled(comm, 1001, np.float32, "shared")
        weighted = plain.copy()
        comm.allreduce(plain, "mean")
        comm.allreduce(weighted, "mean", weight=0.3)
        assert same_bits(plain, weighted)

    workers.run(body)


@pytest.mark.parametrize("weights", [(1e-300, 3e-300), (1e300, 2e300)], ids=["tiny", "huge"])
def test_weights_of_any_magnitude_count_by_their_ratio(
    workers: Workers, weights: tuple[float, float]
) -> None:
    def body(comm: Communicator) -> None:
        mine = weights[comm.rank % 2]
        buffer = filled(comm, 100, np.float64, "shared")
        rows = every(comm, buffer)
        ratio = [weights[rank % 2] / weights[0] for rank in range(comm.size)]
        comm.allreduce(buffer, "mean", weight=mine)
        # The ratio is rounded where it is formed here, so agreement is to rounding.
        np.testing.assert_allclose(buffer, np.average(rows, axis=0, weights=ratio), atol=1e-13)

    workers.run(body)


@pytest.mark.parametrize("dtype", [*FLOATS, np.int32, np.uint8], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_other_operations(workers: Workers, op: Any, dtype: Any) -> None:
    def body(comm: Communicator) -> None:
        for memory in ("shared", "private"):
            buffer = filled(comm, 1001, dtype, memory)
            rows = every(comm, buffer)
            comm.allreduce(buffer, op)
            if op == "sum":
                expected = two_level_sum(rows, comm.topology)
            else:
                expected = getattr(np.array(rows), op)(axis=0).astype(dtype)
            assert same_bits(buffer, expected)

    workers.run(body)


def test_update_sees_every_element_of_the_shard_once_and_is_written_back(workers: Workers) -> None:
    def body(comm: Communicator, memory: str) -> None:
        count = 300_003
        buffer = filled(comm, count, np.float32, memory)
        expected = 2 * two_level_mean(every(comm, buffer), [1.0] * comm.size, comm.topology)
        seen = np.zeros(count, int)

        def double(part: slice, mean: Array) -> None:
            assert mean.shape == (part.stop - part.start,)
            seen[part] += 1
            mean *= 2

        comm.allreduce(buffer, "mean", update=double)
        own = comm.shard(count)
        assert seen[own].tolist() == [1] * (own.stop - own.start)
        assert seen.sum() == own.stop - own.start
        assert same_bits(buffer, expected)

    workers.run(body, "shared")
    workers.run(body, "private")


def test_mix_keeps_a_share_of_every_ranks_own_value(workers: Workers) -> None:
    """Ranks hold r and 4r, and keep a quarter: x = r/4 + 3/4 m, exact for these numbers."""

    def body(comm: Communicator) -> None:
        buffer = comm.allocate(2, np.float64)
        buffer[:] = [comm.rank, 4 * comm.rank]
        mean = two_level_mean(every(comm, buffer), [1.0] * comm.size, comm.topology)
        comm.allreduce(buffer, "mean", mix=0.25)
        np.testing.assert_allclose(
            buffer, 0.25 * np.array([comm.rank, 4 * comm.rank]) + 0.75 * mean, rtol=1e-15
        )

    workers.run(body)


def test_mix_is_the_same_however_many_chunks_are_under_way(workers: Workers) -> None:
    """Every part of a long buffer has numbers of its own; all are exact."""

    def body(comm: Communicator) -> None:
        count = 1_000_000
        buffer = comm.allocate(count, np.float32)
        numbers = np.arange(count, dtype=np.float32) % 4096 * 4
        for kind in ("start", "call"):
            buffer[...] = numbers + (8 if comm.rank == 0 else 0)
            own = buffer.copy()
            mean = own.copy()
            comm.allreduce(mean, "mean")
            if kind == "call":
                comm.allreduce(buffer, "mean", mix=0.5)
            else:
                comm.start(lambda group: group.allreduce(buffer, "mean", mix=0.5)).wait()
            np.testing.assert_array_equal(buffer, mean + np.float32(0.5) * (own - mean))

    workers.run(body)


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_reduce_scatter_then_allgather_is_allreduce(workers: Workers, memory: str) -> None:
    def body(comm: Communicator) -> None:
        for count in LENGTHS:
            buffer = filled(comm, count, np.float32, memory)
            whole = filled(comm, count, np.float32, memory)
            comm.allreduce(whole, "mean")
            own = comm.shard(count)
            comm.reduce_scatter(buffer, "mean")
            assert same_bits(buffer[own], whole[own])
            kept = buffer[own].copy()
            buffer[...] = -1.0
            buffer[own] = kept
            comm.allgather(buffer)
            assert same_bits(buffer, whole)

    workers.run(body)


def test_shards_are_disjoint_cover_the_buffer_and_give_hosts_equal_parts(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        for count in [*LENGTHS, 12_000]:
            parts = comm.collect([comm.shard(count).start, comm.shard(count).stop])
            covered = sorted(i for start, stop in parts for i in range(start, stop))
            assert covered == list(range(count))
            held = [sum(parts[r][1] - parts[r][0] for r in host) for host in comm.topology.hosts]
            assert max(held) - min(held) <= 1

    workers.run(body)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_identical_replicas_stay_bit_identical(
    workers: Workers, dtype: Any, weighted: bool
) -> None:
    """Ordinary numbers, signed zeros, subnormals, and numbers near the dtype's maximum."""

    def body(comm: Communicator) -> None:
        info = ml_dtypes.finfo(dtype)
        special = [
            0.0,
            -0.0,
            info.smallest_subnormal,
            -info.smallest_subnormal,
            info.max,
            -info.max,
        ]
        values = np.concatenate(
            [some_values(0, 3001, dtype), np.array(special).astype(dtype), np.array([info.tiny])]
        ).astype(dtype)
        for memory in ("shared", "private"):
            buffer = comm.allocate(values.size, dtype) if memory == "shared" else values.copy()
            buffer[...] = values
            comm.allreduce(buffer, "mean", weight=1.7 + comm.rank if weighted else None)
            assert same_bits(buffer, values)

    workers.run(body)


def test_codec_narrows_what_travels_and_all_ranks_still_agree(workers: Workers) -> None:
    """Bfloat16 keeps 8 bits: two roundings of values below 8 are off by at most 8 * 2**-8."""

    def body(comm: Communicator) -> None:
        buffer = comm.allocate(1200, np.float32)
        buffer[...] = np.random.default_rng(comm.rank).uniform(-4, 4, 1200)
        exact = buffer.copy()
        comm.allreduce(exact, "mean")
        before = comm.traffic
        comm.allreduce(buffer, "mean", codec=BFLOAT16)
        moved = comm.traffic - before
        rows = every(comm, buffer)
        assert all(same_bits(row, rows[0]) for row in rows)
        hosts = len(comm.topology.hosts)
        if hosts == 1:
            assert same_bits(buffer, exact)
        else:
            assert not same_bits(buffer, exact)
            np.testing.assert_allclose(buffer, exact, atol=8 * 2**-8)
        assert sum(comm.collect(moved.sent)) == 2 * (hosts - 1) * 1200 * 2

    workers.run(body)


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_non_finite_values_reach_every_rank_and_no_other_element(
    workers: Workers, memory: str
) -> None:
    """Rank 0 holds NaN and an infinity; all hold an equal infinity in the third place.

    x - x is NaN for equal infinities, so their mean is, too, unless nobody is to be averaged with.
    """

    def body(comm: Communicator) -> None:
        buffer = filled(comm, 1001, np.float32, memory)
        if comm.rank == 0:
            buffer[:2] = [np.nan, np.inf]
        buffer[2] = np.inf
        rows = every(comm, buffer)
        comm.allreduce(buffer, "mean")
        if comm.size > 1:
            assert not np.isfinite(buffer[:3]).any()
            assert np.isnan(buffer[[0, 2]]).all()
        with np.errstate(invalid="ignore"):
            expected = two_level_mean(rows, [1.0] * comm.size, comm.topology)
        assert same_bits(buffer[3:], expected[3:])
        assert len(set(comm.collect(str(np.isnan(buffer).nonzero()[0].tolist())))) == 1

    workers.run(body)
