"""Decoupled rounds on every backend: streaming DiLoCo on time, replays, one host or an error."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import Workers
from localsgd import (
    Arena,
    Communicator,
    DecoupledAverager,
    DecoupledDiLoCo,
    Merging,
    Quorum,
    StreamingAverager,
    optim,
    outer,
)

PLAN = [["a", "c"], ["b"]]


def parameters(comm: Communicator) -> Arena:
    values = {name: np.arange(n, dtype=np.float32) for name, n in (("a", 3), ("b", 5), ("c", 2))}
    return Arena(values, comm)


def test_on_time_it_is_streaming_diloco_or_several_hosts_are_refused(workers: Workers) -> None:
    def body(comm: Communicator) -> None:
        options: dict[str, Any] = {
            "quorum": Quorum(comm.size),
            "merging": Merging("mean"),
            "on_time": True,
        }
        if len(comm.topology.hosts) > 1:
            with pytest.raises(ValueError, match="decoupled workers must share a host"):
                DecoupledAverager(6, PLAN, comm, mixing=0.25, **options)
            return
        ours, theirs = parameters(comm), parameters(comm)
        nesterov = outer.SGD(0.7, momentum=0.9, nesterov=True)
        decoupled = DecoupledAverager(
            6, PLAN, comm, outer=nesterov, delay=4, mixing=0.25, **options
        )
        streaming = StreamingAverager(6, PLAN, comm, outer=nesterov, delay=4, mixing=0.25)
        decoupled.begin(ours)
        streaming.begin(theirs)
        for number in range(1, 15):
            for arena in (ours, theirs):
                x = arena.flat
                x -= 0.05 * (comm.rank + 1) * (x - np.cos(np.arange(x.size) + comm.rank))
            decoupled.average_parameters(ours)
            streaming.average_parameters(theirs)
            assert ours.flat.tobytes() == theirs.flat.tobytes(), number
        decoupled.flush(ours)
        streaming.flush(theirs)
        assert ours.flat.tobytes() == theirs.flat.tobytes()

    workers.run(body)


def test_a_run_and_its_replay_end_on_every_rank_at_the_same_model(
    workers: Workers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each rank makes a folder, and all use that of rank 0; ranks take unequal numbers of steps."""
    made = str(tmp_path_factory.mktemp("run"))

    def body(comm: Communicator) -> None:
        if len(comm.topology.hosts) > 1:
            return
        folder = Path(comm.collect(made)[0])
        digests, given = list[str](), dict[str, Any]()
        for option in ("log", "replay"):
            arena, given = parameters(comm), {option: folder}
            training = DecoupledDiLoCo(
                optim.SGD(arena, lr=0.05, momentum=0.5),
                4,
                2,
                quorum=Quorum(1),
                staleness=10**6,
                comm=comm,
                **given,
            )
            for number in range(20 + 5 * comm.rank):
                arena.grad.flat[:] = arena.flat - np.sin(number + comm.rank)
                training.step()
            training.flush()
            digests.append(hashlib.sha256(arena.flat.tobytes()).hexdigest())
        assert len({digest for all_of in comm.collect(digests) for digest in all_of}) == 1

    workers.run(body)
