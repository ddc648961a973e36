"""Bad input is a clear error on every rank, at once, and the group goes on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from backends import Workers
from localsgd.comm import Communicator, MismatchError

Call = Callable[[Communicator], object]


def buffer(count: int = 8, dtype: type = np.float32) -> np.ndarray:
    return np.ones(count, dtype)


def read_only() -> np.ndarray:
    array = buffer()
    array.flags.writeable = False
    return array


WRONG: dict[str, tuple[Call, type[Exception], str]] = {
    "unknown op": (
        lambda comm: comm.allreduce(buffer(), "average"),  # type: ignore[arg-type]
        ValueError,
        "op must be one of mean, sum, max, min, got 'average'",
    ),
    "mean of integers": (
        lambda comm: comm.allreduce(buffer(8, np.int32), "mean"),
        TypeError,
        "the mean needs a floating-point buffer, got int32",
    ),
    "complex": (
        lambda comm: comm.allreduce(buffer(8, np.complex64), "sum"),
        TypeError,
        "dtype must be one of float16, bfloat16",
    ),
    "list": (
        lambda comm: comm.allreduce([1.0], "sum"),  # type: ignore[arg-type]
        TypeError,
        "buffer must be a numpy array, got list",
    ),
    "matrix": (
        lambda comm: comm.allreduce(np.ones((2, 2)), "sum"),
        ValueError,
        r"buffer must be one-dimensional and contiguous, got shape \(2, 2\)",
    ),
    "strided": (
        lambda comm: comm.allreduce(buffer()[::2], "sum"),
        ValueError,
        "buffer must be one-dimensional and contiguous",
    ),
    "read-only": (
        lambda comm: comm.broadcast(read_only(), 0),
        ValueError,
        "buffer must be writeable",
    ),
    "negative weight": (
        lambda comm: comm.allreduce(buffer(), "mean", weight=-1.0),
        ValueError,
        "weight must be finite and at least 0, got -1.0",
    ),
    "NaN weight": (
        lambda comm: comm.allreduce(buffer(), "mean", weight=float("nan")),
        ValueError,
        "weight must be finite and at least 0, got nan",
    ),
    "weighted sum": (
        lambda comm: comm.allreduce(buffer(), "sum", weight=1.0),
        ValueError,
        "weight goes with op 'mean' alone",
    ),
    "mix above one": (
        lambda comm: comm.allreduce(buffer(), "mean", mix=1.5),
        ValueError,
        r"mix must lie in \[0, 1\], got 1.5",
    ),
    "mix of integers": (
        lambda comm: comm.allreduce(buffer(8, np.uint8), "sum", mix=0.5),
        TypeError,
        "mix needs a floating-point buffer, got uint8",
    ),
    "weight beyond floats": (
        lambda comm: comm.allreduce(buffer(), "mean", weight=10**400),
        OverflowError,
        "int too large to convert to float",
    ),
    "codec by name": (
        lambda comm: comm.allreduce(buffer(), "mean", codec="float16"),  # type: ignore[arg-type]
        TypeError,
        "codec must be a Codec, as FLOAT16 is, got 'float16'",
    ),
    "codec of a gathering by name": (
        lambda comm: comm.allgather(buffer(), codec="float16"),  # type: ignore[arg-type]
        TypeError,
        "codec must be a Codec, as FLOAT16 is, got 'float16'",
    ),
    "update that is no function": (
        lambda comm: comm.allreduce(buffer(), "mean", update=0.1),  # type: ignore[arg-type]
        TypeError,
        "update must be a function, got 0.1",
    ),
    "label that is no string": (
        lambda comm: comm.allreduce(buffer(), "mean", label=["a"]),  # type: ignore[arg-type]
        TypeError,
        r"label must be a string, got \['a'\]",
    ),
    "root outside": (
        lambda comm: comm.broadcast(buffer(), comm.size),
        ValueError,
        "root must be a rank below",
    ),
    "negative count": (
        lambda comm: comm.allocate(-1, np.float32),
        ValueError,
        "count must be at least 0, got -1",
    ),
    "count beyond all memory": (
        lambda comm: comm.allocate(2**63, np.float32),
        ValueError,
        "count must be at most 2305843009213693951 of float32, got 9223372036854775808",
    ),
    "boolean count": (
        lambda comm: comm.allocate(True, np.float32),
        TypeError,
        "count must be an integer, got True",
    ),
    "negative colour": (
        lambda comm: comm.split(-1),
        ValueError,
        "color must be at least 0, got -1",
    ),
    "not JSON": (
        lambda comm: comm.collect({1, 2}),
        TypeError,
        "the value must be JSON",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_on_all_ranks_is_everyones_own_error(workers: Workers, name: str) -> None:
    call, kind, message = WRONG[name]

    def body(comm: Communicator) -> None:
        with pytest.raises(kind, match=message):
            call(comm)
        comm.barrier()

    workers.run(body)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_on_one_rank_is_an_error_on_all_that_names_it(workers: Workers, name: str) -> None:
    call, kind, message = WRONG[name]

    def body(comm: Communicator) -> None:
        culprit = comm.size - 1
        mine = buffer()
        if comm.rank == culprit:
            with pytest.raises(kind, match=message):
                call(comm)
        else:
            with pytest.raises(
                MismatchError, match=f"rank {culprit} could not take part: .*{message}"
            ):
                comm.allreduce(mine, "mean")
        assert mine.tolist() == [1.0] * 8
        comm.barrier()

    workers.run(body)


DIFFERENT: dict[str, tuple[Call, Call]] = {
    "length": (
        lambda comm: comm.allreduce(buffer(8), "mean"),
        lambda comm: comm.allreduce(buffer(9), "mean"),
    ),
    "few or many": (
        lambda comm: comm.allreduce(buffer(8), "mean"),
        lambda comm: comm.allreduce(buffer(100_000), "mean"),
    ),
    "dtype": (
        lambda comm: comm.allreduce(buffer(8), "mean"),
        lambda comm: comm.allreduce(buffer(8, np.float64), "mean"),
    ),
    "operation": (
        lambda comm: comm.allreduce(buffer(8), "mean"),
        lambda comm: comm.allreduce(buffer(8), "sum"),
    ),
    "verb": (lambda comm: comm.allreduce(buffer(8), "mean"), lambda comm: comm.barrier()),
    "weighted or not": (
        lambda comm: comm.allreduce(buffer(8), "mean"),
        lambda comm: comm.allreduce(buffer(8), "mean", weight=1.0),
    ),
    "update or not": (
        lambda comm: comm.allreduce(buffer(8), "mean"),
        lambda comm: comm.allreduce(buffer(8), "mean", update=lambda part, mean: None),
    ),
    "mix": (
        lambda comm: comm.allreduce(buffer(8), "mean", mix=0.5),
        lambda comm: comm.allreduce(buffer(8), "mean"),
    ),
    "root": (
        lambda comm: comm.broadcast(buffer(8), 0),
        lambda comm: comm.broadcast(buffer(8), comm.size - 1),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_calls_are_a_mismatch_on_every_rank(workers: Workers, name: str) -> None:
    usual, odd = DIFFERENT[name]

    def body(comm: Communicator) -> None:
        if comm.size == 1:
            usual(comm)
            return
        with pytest.raises(MismatchError, match="all ranks must make the same call") as caught:
            (odd if comm.rank == 1 else usual)(comm)
        assert "rank 1:" in str(caught.value)
        comm.barrier()

    workers.run(body)


def test_different_regions_are_a_mismatch(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        first, second = comm.allocate(64, np.float32), comm.allocate(64, np.float32)
        first[...] = second[...] = comm.rank
        if comm.size == 1:
            return
        for other in (second[:32], first[32:], np.zeros(32, np.float32)):
            with pytest.raises(MismatchError, match="all ranks must make the same call"):
                comm.allreduce(first[:32] if comm.rank else other, "mean")
        assert first.tolist() == second.tolist() == [comm.rank] * 64

    workers.run(body)


def test_weights_that_are_all_zero_are_an_error_everywhere(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        mine = buffer()
        with pytest.raises(ValueError, match="one rank's weight must be above 0"):
            comm.allreduce(mine, "mean", weight=0.0)
        assert mine.tolist() == [1.0] * 8
        comm.barrier()

    workers.run(body)
