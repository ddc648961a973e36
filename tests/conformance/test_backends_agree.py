"""One layout gives one set of bits, whatever carries the messages."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from backends import DEADLINE_S, Workers
from localsgd.comm import BFLOAT16, Communicator, NotFiniteError, run_threads, world
from oracle import some_values

pytestmark = [pytest.mark.every_layout, pytest.mark.long]


def digest(comm: Communicator) -> str:
    """Of what a rank holds after every kind of reduction."""
    found = hashlib.sha256()
    kinds: list[Any] = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    for dtype in kinds:
        for count in (1, 1001, 150_001):
            buffer = comm.allocate(count, dtype)
            for weight in (None, 1.0 + comm.rank):
                buffer[...] = some_values(comm.rank, count, dtype)
                comm.allreduce(buffer, "mean", weight=weight, mix=0.0)
                found.update(buffer.tobytes())
            comm.allreduce(buffer, "sum", codec=BFLOAT16)
            found.update(buffer.tobytes())
    return found.hexdigest()


def test_this_backend_gives_the_bits_of_threads(workers: Workers) -> None:
    def of_threads() -> str:
        found = run_threads(workers.size, digest, hosts=workers.hosts, deadline_s=DEADLINE_S)
        assert len(set(found)) == 1
        return found[0]

    def body(comm: Communicator) -> None:
        # Once for all: ranks that each have as many threads would only wait for each other.
        expected = comm.collect(of_threads() if comm.rank == 0 else None)[0]
        assert digest(comm) == expected

    workers.run(body)


def test_native_reduction_agrees_to_rounding(workers: Workers) -> None:
    if workers.backend != "processes":
        # Only MPI has a reduction of its own; asking for it elsewhere is an error.
        with pytest.raises(ValueError, match="reduction 'native' needs MPI"):
            world(reduction="native")
        return
    comm = workers.world()
    native = world(hosts=workers.hosts, reduction="native", deadline_s=DEADLINE_S)
    for op in ("mean", "sum", "max"):
        for weight in (None, 1.0 + comm.rank) if op == "mean" else (None,):
            exact = some_values(comm.rank, 5001, np.float32)
            library = exact.copy()
            comm.allreduce(exact, op, weight=weight)  # type: ignore[arg-type]
            native.allreduce(
                library,
                op,  # type: ignore[arg-type]
                weight=weight,
                update=lambda part, mean: np.multiply(mean, 2, out=mean),  # type: ignore[arg-type]
            )
            # Values below 64 summed over at most 6 ranks, in float32.
            np.testing.assert_allclose(library, 2 * exact, rtol=1e-5, atol=2e-4)
            rows = comm.collect(library.tobytes().hex())
            assert len(set(rows)) == 1
    spoilt = np.array([comm.rank, np.nan if comm.rank == comm.size - 1 else 1.0])
    own = spoilt[1]
    with pytest.raises(NotFiniteError) as raised:
        native.allreduce(spoilt, "mean", finite=True)
    assert raised.value.ranks == (comm.size - 1,)
    # A sum of small whole numbers, divided once.
    np.testing.assert_allclose(spoilt[0], (comm.size - 1) / 2, rtol=1e-15)
    assert spoilt[1:].tobytes() == np.array([own]).tobytes()
