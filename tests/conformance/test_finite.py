"""A mean that is to be finite: NaN and infinity are named and reach nobody, wherever they are."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from backends import Workers
from localsgd.comm import BFLOAT16, Communicator, MismatchError, NotFiniteError, solo
from localsgd.comm.contract import Array, ScalarRule
from oracle import every, same_bits, some_values, two_level_mean

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
# Shown with the headers; several chunks of every rank, and compiled loops.
LENGTHS = [7, 300_003]


def lengths_of(dtype: Any) -> list[int]:
    """As many as that takes."""
    return [7, {np.float32: 300_003, np.float64: 140_003}.get(dtype, 40_001)]


def buffer_of(comm: Communicator, values: Array, memory: str) -> Array:
    if memory == "private":
        return values.copy()
    buffer = comm.allocate(values.size, values.dtype)
    buffer[...] = values
    return buffer


def spoilt(comm: Communicator, count: int, dtype: Any) -> Array:
    """Values of which the last rank's begin with NaN and end with -inf, rank 0's have one inf."""
    values = some_values(comm.rank, count, dtype)
    if comm.rank == comm.size - 1:
        values[[0, 1, -1]] = np.nan, np.nan, -np.inf
    if comm.rank == 0:
        values[count // 2] = np.inf
    return values


def found_by(comm: Communicator, count: int) -> list[tuple[int, int]]:
    """What ``spoilt`` has, for every rank."""
    found = [(0, 0)] * comm.size
    found[-1] = 3, 0
    found[0] = (4, 0) if comm.size == 1 else (1, count // 2)
    return found


def expected(rows: list[Array], own: Array, weights: list[float], comm: Communicator) -> Array:
    """The mean, but this rank's own numbers where it is not finite."""
    with np.errstate(all="ignore"):
        mean = two_level_mean(rows, weights, comm.topology)
    return np.where(np.isfinite(mean), mean, own)


@pytest.mark.every_layout
@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_who_gave_what_is_named_and_each_keeps_its_own(
    workers: Workers, dtype: Any, memory: str
) -> None:
    def body(comm: Communicator) -> None:
        for count in lengths_of(dtype):
            values = spoilt(comm, count, dtype)
            buffer = buffer_of(comm, values, memory)
            wanted = expected(every(comm, values), values, [1.0] * comm.size, comm)
            with pytest.raises(NotFiniteError) as raised:
                comm.allreduce(buffer, "mean", finite=True)
            assert same_bits(buffer, wanted), f"{count} elements"
            assert list(raised.value.found) == found_by(comm, count)
            assert raised.value.ranks == tuple(sorted({0, comm.size - 1}))
            comm.agree(str(raised.value), "messages")

    workers.run(body)


@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_finite_values_have_the_bits_of_a_mean_that_nobody_looks_at(
    workers: Workers, dtype: Any, memory: str
) -> None:
    def body(comm: Communicator) -> None:
        for count in (0, 1, *lengths_of(dtype)):
            values = some_values(comm.rank, count, dtype)
            plain, finite = (buffer_of(comm, values, memory) for _ in range(2))
            comm.allreduce(plain, "mean")
            # Twice, since a repeated call goes by what was found of it before.
            comm.allreduce(finite, "mean", finite=True)
            comm.allreduce(finite, "mean", finite=True)
            assert same_bits(plain, finite), f"{count} elements"

    workers.run(body)


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_a_rank_of_weight_0_is_not_read_and_not_named(workers: Workers, memory: str) -> None:
    """The first rank weighs nothing and holds NaN; so does the last, which counts, at one place."""

    def body(comm: Communicator) -> None:
        if comm.size == 1:
            return
        for count in LENGTHS:
            last = comm.rank == comm.size - 1
            values = some_values(comm.rank, count, np.float32)
            if comm.rank == 0:
                values[...] = np.nan
            weights = [0.0, *(0.5 + rank for rank in range(1, comm.size))]
            finite = buffer_of(comm, values, memory)
            comm.allreduce(finite, "mean", weight=weights[comm.rank], finite=True)
            values[3:4] = np.nan if last else values[3:4]
            rows, buffer = every(comm, values), buffer_of(comm, values, memory)
            with pytest.raises(NotFiniteError) as raised:
                comm.allreduce(buffer, "mean", weight=weights[comm.rank], finite=True)
            assert raised.value.found == (*[(0, 0)] * (comm.size - 1), (1, 3))
            wanted = expected(rows, values, weights, comm)
            assert same_bits(buffer, wanted)
            assert same_bits(np.delete(finite, 3), np.delete(wanted, 3))

    workers.run(body)


class Following:
    """Lets a kept array follow the mean, by a rule for single numbers or without."""

    def __init__(self, shard: slice, *, ruled: bool) -> None:
        self.start, self.followed = shard.start, np.zeros(shard.stop - shard.start, np.float32)
        self.rule = ScalarRule(_half_way, [self.followed]) if ruled else None

    def __call__(self, part: slice, mean: Array) -> None:
        assert np.isfinite(mean).all()
        here = self.followed[part.start - self.start : part.stop - self.start]
        here += (mean - here) * np.float32(0.5)
        mean[...] = here


def _half_way(mean: Any, followed: Any) -> tuple[Any]:
    return (followed + (mean - followed) * np.float32(0.5),)


@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("ruled", [True, False], ids=["rule", "update"])
def test_an_update_sees_finite_means_alone(workers: Workers, ruled: bool, memory: str) -> None:
    """What it keeps has moved half way to a finite mean, and nowhere else."""

    def body(comm: Communicator) -> None:
        count = LENGTHS[-1]
        values = spoilt(comm, count, np.float32)
        buffer = buffer_of(comm, values, memory)
        mean = expected(every(comm, values), np.zeros_like(values), [1.0] * comm.size, comm)
        update, shard = Following(comm.shard(count), ruled=ruled), comm.shard(count)
        with pytest.raises(NotFiniteError) as raised:
            comm.allreduce(buffer, "mean", update=update, finite=True)
        assert list(raised.value.found) == found_by(comm, count)
        assert same_bits(update.followed, mean[shard] * np.float32(0.5))
        bad = [0, 1, count // 2, count - 1]
        assert same_bits(buffer[bad], values[bad])
        assert same_bits(np.delete(buffer, bad), np.delete(mean * np.float32(0.5), bad))

    workers.run(body)


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_each_keeps_its_share_of_finite_results_alone(workers: Workers, memory: str) -> None:
    def body(comm: Communicator) -> None:
        for count in LENGTHS:
            values = spoilt(comm, count, np.float32)
            buffer, plain = (buffer_of(comm, values, memory) for _ in range(2))
            comm.allreduce(plain, "mean", mix=0.25)
            with pytest.raises(NotFiniteError):
                comm.allreduce(buffer, "mean", mix=0.25, finite=True)
            bad = np.isin(np.arange(count), [0, 1, count // 2, count - 1])
            assert same_bits(buffer, np.where(bad, values, plain))

    workers.run(body)


def test_a_mean_of_finite_values_that_overflows_names_nobody(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        if comm.size == 1:
            return
        top = np.full(9, np.finfo(np.float64).max)
        values = top if comm.rank else -top
        buffer = values.copy()
        with pytest.raises(
            NotFiniteError, match="finite ones of which the mean overflows"
        ) as raised:
            comm.allreduce(buffer, "mean", finite=True)
        assert raised.value.ranks == ()
        assert same_bits(buffer, values)

    workers.run(body)


def test_after_such_an_error_all_goes_on(workers: Workers) -> None:
    """Who repairs what it gave and calls again gets the mean, since what is equal stays."""

    def body(comm: Communicator) -> None:
        values = some_values(comm.rank, 300_003, np.float32)
        buffer, plain = buffer_of(comm, values, "shared"), values.copy()
        comm.allreduce(plain, "mean")
        kept = buffer[5]
        buffer[5] = kept if comm.rank else np.nan
        with pytest.raises(NotFiniteError):
            comm.allreduce(buffer, "mean", finite=True)
        if comm.rank == 0:
            buffer[5] = kept
        comm.allreduce(buffer, "mean", finite=True)
        assert hashlib.sha256(buffer).hexdigest() == hashlib.sha256(plain).hexdigest()

    workers.run(body)


@pytest.mark.layouts("3", "2+1")
def test_ranks_of_which_some_look_get_an_error_on_each(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        for count in (7, 40_001):
            if comm.size == 1:
                comm.allreduce(np.ones(count), "mean", finite=True)
                continue
            with pytest.raises(MismatchError, match="with finite results"):
                comm.allreduce(np.ones(count), "mean", finite=comm.rank == 1)

    workers.run(body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op": "mean", "finite": 1}, "finite must be True or False, got 1"),
        ({"op": "max", "finite": True}, "finite goes with op 'mean' alone, got op 'max'"),
        ({"op": "mean", "finite": True, "codec": BFLOAT16}, "finite must be without a codec"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        solo().allreduce(np.ones(3, np.float32), **options)
