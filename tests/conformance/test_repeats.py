"""A call that is made again goes by what was found the first time, and is compared all the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from backends import Workers
from localsgd.comm import Communicator, MismatchError

pytestmark = pytest.mark.every_layout

COUNTS = [7, 5_000]


@pytest.mark.parametrize("count", COUNTS)
def test_every_call_reduces_what_the_buffer_holds_then(workers: Workers, count: int) -> None:
    """In one buffer, with ops in turn: ranks hold 0, 1, … plus the number of the turn."""

    def body(comm: Communicator) -> None:
        buffer, other = comm.allocate(count, np.float64), np.zeros(count)
        ranks = np.arange(comm.size)
        for turn in range(4):
            for op, expected in (
                ("mean", ranks.mean() + turn),
                ("sum", (ranks + turn).sum()),
                ("max", comm.size - 1 + turn),
            ):
                for target in (buffer, other):
                    target[...] = comm.rank + turn
                    comm.allreduce(target, op)  # type: ignore[arg-type]
                    np.testing.assert_allclose(target, expected, rtol=1e-15)

    workers.run(body)


def test_views_of_one_buffer_are_buffers_of_their_own(workers: Workers) -> None:
    """Views are made and dropped, so that new ones lie where old ones lay."""

    def body(comm: Communicator) -> None:
        buffer = comm.allocate(20, np.float64)
        for turn in range(30):
            part = slice(turn % 5, turn % 5 + 4 + turn % 7)
            buffer[...] = comm.rank
            comm.allreduce(buffer[part], "sum")
            expected = np.full(20, float(comm.rank))
            expected[part] = comm.size * (comm.size - 1) / 2
            assert buffer.tolist() == expected.tolist()

    workers.run(body)


def read_only(buffer: np.ndarray) -> None:
    buffer.flags.writeable = False


def in_two_rows(buffer: np.ndarray) -> None:
    buffer.shape = (2, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (read_only, "buffer must be writeable"),
        (in_two_rows, "buffer must be one-dimensional"),
    ],
    ids=["read-only", "reshaped"],
)
def test_a_buffer_that_has_changed_is_looked_at_again(
    workers: Workers, change: Callable[[np.ndarray], None], message: str
) -> None:
    def body(comm: Communicator) -> None:
        buffer = np.ones(8, np.float32)
        for _ in range(3):
            comm.allreduce(buffer, "mean")
        change(buffer)
        with pytest.raises((ValueError, MismatchError), match=message):
            comm.allreduce(buffer, "mean")

    workers.run(body)


@pytest.mark.parametrize("what", ["op", "label", "length"])
def test_a_rank_that_departs_from_the_repeated_call_is_an_error_on_every_rank(
    workers: Workers, what: str
) -> None:
    def body(comm: Communicator) -> None:
        buffer = np.ones(8, np.float32)
        for _ in range(3):
            comm.allreduce(buffer, "mean", label="the same")
        departs = comm.rank == comm.size - 1 and comm.size > 1

        def call() -> None:
            comm.allreduce(
                buffer[:4] if departs and what == "length" else buffer,
                "sum" if departs and what == "op" else "mean",
                label="another" if departs and what == "label" else "the same",
            )

        if comm.size == 1:
            call()
        else:
            with pytest.raises(MismatchError, match="all ranks must make the same call"):
                call()
        comm.allreduce(buffer, "mean", label="the same")
        assert buffer.tolist() == [1.0] * 8

    workers.run(body)
